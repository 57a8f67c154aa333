"""The function behind `llmkit recommend`: which format of a model to take on a machine, and why."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from llmkit.arguments import parse_bytes
from llmkit.deploymentformats import FORMATS
from llmkit.errors import EvaluationError
from llmkit.evaluate.known import Quality, known_quality
from llmkit.evaluate.records import pareto
from llmkit.machine import Machine, read_bandwidth, this_machine
from llmkit.measuring import Measured
from llmkit.measuring import measure as measure_targets
from llmkit.progress import Silent
from llmkit.protocols import Progress
from llmkit.sizes import ModelSizes, TargetSize, sizes_of

if TYPE_CHECKING:
    from llmkit.models import ResolvedModel

Device = Literal["auto", "cpu", "cuda", "apple", "intel", "phone"]
DEVICES: Final[tuple[Device, ...]] = get_args(Device)
DEFAULT_AGREEMENT: Final = 0.9
# A token takes the time to read the weights at this share of the bandwidth, and seconds for each block. Fitted to what
# llama.cpp and ONNX Runtime took for models of 0.13 and 1.08 billion weights in f16, Q8_0, Q6_K, Q4_K_M, Q4_0, int8 and
# int4 on two Zen 3 cores, mostly within 15 %, in noisy hours 35 %.
_SHARE: Final = 0.75
_BLOCK: Final = 1e-4
# Of a GPU's memory: what is left beside the display and the driver.
_USABLE: Final = 0.9
_MEASURED: Final = 5  # candidates at most


@dataclass(frozen=True, slots=True)
class Candidate:
    """One target of `llmkit convert` for the model.

    size: exact bytes of its files. memory: bytes to run it with the context. fits: whether the machine has that.
    tokens_per_second: predicted from the memory's bandwidth and the weights that one token reads; None where the memory
    is not this machine's. quality: what is known of such a file, estimated for the model's size. measured: what
    it really gives, where that was asked for.
    """

    target: str
    size: int
    memory: int
    fits: bool
    tokens_per_second: float | None
    quality: Quality | None
    measured: Measured | None = None

    @property
    def agreement(self) -> float:
        """Measured, else estimated; 0 where nothing is known."""
        if self.measured is not None:
            return self.measured.agreement
        return 0.0 if self.quality is None else self.quality.agreement


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What fits, what to take and why.

    bandwidth: bytes a second at which this machine's memory is read; None if the model is for another device. memory:
    bytes that it may take, None for no limit. chosen: one of the candidates' targets. commands: what to type.
    alternative: a smaller form that an importance matrix brings as far, as a sentence. elsewhere: where another tool
    serves better.
    """

    model: str
    architecture: str
    n_params: int
    n_context: int
    cache_bytes: int
    device: str
    machine: Machine
    bandwidth: float | None
    memory: int | None
    min_agreement: float
    candidates: tuple[Candidate, ...]
    chosen: str
    why: str
    commands: tuple[str, ...]
    alternative: str | None
    elsewhere: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def recommend(
    model: str | os.PathLike[str] | ResolvedModel,
    *,
    memory: int | str | None = None,
    min_agreement: float = DEFAULT_AGREEMENT,
    context: int | None = None,
    device: Device = "auto",
    measure: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Say which format to convert a model to.

    model: a checkpoint, named as on the command line.
    memory: bytes that running it may take, or as "8GB"; by default what is available here.
    min_agreement: share of tokens for which the model is to predict the same as the original.
    context: tokens, for the KV cache; by default the model's own, at most 4096.
    device: "cpu", "cuda", "auto" for CUDA where there is a GPU and else the CPU; or another place than this machine:
        "apple", "intel", "phone".
    measure: convert and run the candidates that come near, and decide by what they give.

    Of those that fit and agree, the one is taken that reads least memory for a token, so is fastest; if none agrees
    enough, the one that agrees most.

    Raises EvaluationError if nothing fits, and what reading the model raises.
    """
    if not 0 < min_agreement <= 1:
        raise EvaluationError(f"min_agreement is {min_agreement}; expected a share between 0 and 1, such as 0.95")
    if device not in DEVICES:
        raise EvaluationError(f"device is {device!r}; known: {', '.join(DEVICES)}")
    machine = this_machine()
    place = _place(device, machine)
    if measure and place != "cpu":
        raise EvaluationError(f"device {place}: candidates are measured on a CPU only; leave out --measure (measure)")
    sizes = sizes_of(model, context=context, provider="cuda" if place == "cuda" else "cpu")
    limit = parse_bytes(memory) if memory is not None else _memory_of(place, machine)
    bandwidth = read_bandwidth(threads) if place == "cpu" else None
    candidates = [_candidate(size, sizes, limit, bandwidth) for size in sizes.targets if _runs_on(size.target, place)]
    if not candidates:
        raise EvaluationError(
            f"{sizes.model.name} has no form for device {place}: {'; '.join(sizes.notes)}. Take --device cpu (device)"
        )
    if not any(candidate.fits for candidate in candidates):
        least = min(candidates, key=lambda candidate: candidate.memory)
        raise EvaluationError(
            f"{sizes.model.name} does not fit: the smallest form, {least.target}, needs {least.memory / 1e9:.2f} GB "
            f"with a context of {sizes.n_context:,} tokens, and there are {(limit or 0) / 1e9:.2f} GB. Take a smaller "
            "model, a smaller context (--context), or more memory (--memory)"
        )
    if measure:
        shortlist = _shortlist(candidates, min_agreement)
        needs = {size.target: size.memory for size in sizes.targets}
        found = measure_targets(
            sizes.model,
            {target: needs[target] for target in shortlist},
            n_params=sizes.n_params,
            n_context=sizes.n_context,
            limit=limit,
            threads=threads,
            progress=progress or Silent(),
        )
        candidates = [replace(one, measured=found.get(one.target)) for one in candidates]
    chosen, why = _choose(candidates, min_agreement)
    return Recommendation(
        model=sizes.model.name,
        architecture=sizes.architecture,
        n_params=sizes.n_params,
        n_context=sizes.n_context,
        cache_bytes=sizes.cache_bytes,
        device=place,
        machine=machine,
        bandwidth=bandwidth,
        memory=limit,
        min_agreement=min_agreement,
        candidates=tuple(candidates),
        chosen=chosen.target,
        why=why,
        commands=_commands(sizes, chosen, place),
        alternative=_better_with_importance(candidates, chosen, min_agreement),
        elsewhere=_elsewhere(place, machine),
        notes=sizes.notes,
    )


def _place(device: Device, machine: Machine) -> str:
    if device == "cuda" and not machine.gpus:
        raise EvaluationError("device cuda: nvidia-smi tells of no GPU here")
    if device != "auto":
        return device
    if machine.gpus:
        return "cuda"
    return "apple" if machine.is_apple_silicon else "cpu"


def _memory_of(place: str, machine: Machine) -> int | None:
    if place == "cuda":
        return int(max(gpu.memory for gpu in machine.gpus) * _USABLE)
    if place == "cpu" or (place == "apple" and machine.is_apple_silicon):
        return machine.available if machine.available is not None else machine.memory
    return None


def _runs_on(target: str, place: str) -> bool:
    """Whether the form is one that llmkit's users run there.

    float16 ONNX models are slow on CPUs, which compute in float32; on CUDA llama.cpp needs a build of its own.
    """
    if place == "cuda":
        return target.startswith("onnx-")
    if place in ("apple", "phone"):
        return target.startswith("gguf-")
    return target != "onnx-fp16"


def _candidate(size: TargetSize, sizes: ModelSizes, limit: int | None, bandwidth: float | None) -> Candidate:
    return Candidate(
        target=size.target,
        size=size.n_bytes,
        memory=size.memory,
        fits=limit is None or size.memory <= limit,
        tokens_per_second=None
        if bandwidth is None
        else 1 / (size.bytes_per_token / (_SHARE * bandwidth) + _BLOCK * sizes.n_layers),
        quality=known_quality(size.target, sizes.n_params),
    )


def _speed(candidate: Candidate) -> float:
    """To compare candidates by: tokens a second, or smallness where none is known."""
    if candidate.measured is not None:
        return candidate.measured.tokens_per_second
    return candidate.tokens_per_second or 1 / candidate.size


def _choose(candidates: Sequence[Candidate], min_agreement: float) -> tuple[Candidate, str]:
    """The candidate to take, and the reason as a sentence."""
    fitting = [one for one in candidates if one.fits]
    measured = [one for one in fitting if one.measured is not None]
    known = measured or fitting
    word = "measured" if measured else "estimated"
    agreeing = [one for one in known if one.agreement >= min_agreement]
    if not agreeing:
        best = max(known, key=lambda one: one.agreement)
        return best, (
            f"nothing that fits agrees with the original for {min_agreement:.0%} of tokens; this comes nearest, with "
            f"{best.agreement:.1%} ({word})"
        )
    best = max(agreeing, key=_speed)
    return best, (
        f"of the {len(agreeing)} that fit and agree with the original for {min_agreement:.0%} of tokens it is the "
        f"fastest: {best.agreement:.1%} ({word})"
    )


def _shortlist(candidates: Sequence[Candidate], min_agreement: float) -> list[str]:
    """The targets worth measuring: those that no smaller one is expected to beat, nearest to the wanted agreement."""
    agreements = {one.target: one.agreement for one in candidates}
    front = expected_front([one for one in candidates if one.fits])
    return sorted(front, key=lambda target: abs(agreements[target] - min_agreement))[:_MEASURED]


def expected_front(candidates: Sequence[Candidate]) -> list[str]:
    """The targets that no smaller one is expected to beat in agreement, by size."""
    known = {one.target: one.quality for one in candidates if one.quality is not None and one.quality.agreement > 0}
    sizes = {one.target: one.size for one in candidates}
    return pareto({target: (sizes[target], -quality.agreement) for target, quality in known.items()})


def _commands(sizes: ModelSizes, chosen: Candidate, place: str) -> tuple[str, ...]:
    """What makes the file; of a GGUF file llama-quantize's way."""
    model = shlex.quote(sizes.model.repo or str(sizes.model.path))
    if sizes.model.kind == "gguf" and chosen.target.startswith("gguf-"):
        return (f"llmkit quantize {model} --to {chosen.target.removeprefix('gguf-')}",)
    return (f"llmkit convert {model} --to {chosen.target}" + (" --ep cuda" if place == "cuda" else ""),)


def _better_with_importance(candidates: Sequence[Candidate], chosen: Candidate, min_agreement: float) -> str | None:
    """A smaller form that an importance matrix is expected to bring as far, as a sentence."""
    smaller = [
        one
        for one in candidates
        if one.fits
        and one.size < chosen.size
        and one.quality is not None
        and one.quality.agreement_with_importance >= min_agreement
    ]
    if chosen.agreement < min_agreement or not smaller:
        return None
    best = min(smaller, key=lambda one: one.size)
    assert best.quality is not None
    return (
        f"with an importance matrix (llmkit imatrix, --imatrix) {best.target} should do, "
        f"{1 - best.size / chosen.size:.0%} smaller: {best.quality.agreement_with_importance:.1%} (estimated)"
    )


def _elsewhere(place: str, machine: Machine) -> tuple[str, ...]:
    """Formats that this command does not weigh, where they may serve better there."""
    place = "intel" if place == "cpu" and machine.is_intel else place
    return tuple(
        f"{one.name}: {one.advantage} ({f'llmkit convert MODEL --to {one.target}' if one.target else one.note})"
        for one in FORMATS
        if place in one.places
    )
