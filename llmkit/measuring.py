"""Converting a model to several targets for real, and running them beside it: `llmkit recommend --measure`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llmkit.evaluate.records import ComparedModel
from llmkit.models import ResolvedModel
from llmkit.protocols import Progress
from llmkit.sizes import ModelSizes

_WINDOWS: Final = 8
_WINDOW: Final = 512
_GENERATED: Final = 64
_REPETITIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What a form of a model gave here: nats from the original's predictions, share of the same most likely tokens,
    tokens a second one by one, bytes of memory."""

    mean_kl: float
    agreement: float
    tokens_per_second: float
    memory: int | None


def measure(
    sizes: ModelSizes, targets: Sequence[str], *, limit: int | None, threads: int | None, progress: Progress
) -> dict[str, Measured]:
    """Convert the model to the targets, in a folder here that is removed again, and measure each.

    limit: bytes of memory that models may take together. The reference is the checkpoint in transformers if that is
    installed and fits, or else the model in bf16 on llama.cpp.

    Raises what converting and comparing raise.
    """
    from llmkit.comparison import compare

    needs = {size.target: size.memory for size in sizes.targets}
    found: dict[str, Measured] = {}
    with TemporaryDirectory(prefix=".llmkit-recommend-", dir=".") as name:
        folder = Path(name)
        reference, its_need = _reference(sizes, folder, limit, progress)
        files = {target: _written(sizes.model, target, folder, progress) for target in targets}
        room = None if limit is None else limit - its_need
        for group in _groups(targets, needs, room):
            result = compare(
                [files[target] for target in group],
                reference=reference,
                context=min(_WINDOW, sizes.n_context),
                chunks=_WINDOWS,
                prompt=(),
                generated=(_GENERATED,),
                repetitions=_REPETITIONS,
                questions=(),
                threads=threads,
                progress=progress,
            )
            if result.interrupted:  # a part of the numbers is no ground to choose on
                raise KeyboardInterrupt
            found |= {target: _measured(model) for target, model in zip(group, result.models[1:], strict=True)}
    return found


def _reference(
    sizes: ModelSizes, folder: Path, limit: int | None, progress: Progress
) -> tuple[Path | ResolvedModel, int]:
    """The model to compare with, and the memory that it takes."""
    in_float32 = 4 * sizes.n_params
    if sizes.model.kind == "gguf":
        return sizes.model, 2 * sizes.n_params
    if find_spec("torch") and find_spec("transformers") and (limit is None or 2 * in_float32 < limit):
        return sizes.model, in_float32
    return _written(sizes.model, "gguf-bf16", folder, progress, name="reference"), 2 * sizes.n_params


def _written(model: ResolvedModel, target: str, folder: Path, progress: Progress, name: str | None = None) -> Path:
    from llmkit.api import convert, quantize

    is_gguf = target.startswith("gguf-")
    target, _, recipe = target.partition(" --recipe ")
    output = folder / f"{name or '-'.join(filter(None, (target, recipe)))}{'.gguf' if is_gguf else ''}"
    if is_gguf and model.kind == "gguf":
        return quantize(model.path, target, output=output, progress=progress).path
    return convert(model, target, output=output, recipe=recipe or None, progress=progress).path


def _groups(targets: Sequence[str], needs: Mapping[str, int], room: int | None) -> Iterator[list[str]]:
    """Those that are in memory together, beside the reference; one at least."""
    group: list[str] = []
    for target in targets:
        if group and room is not None and sum(needs[one] for one in (*group, target)) > room:
            yield group
            group = []
        group.append(target)
    if group:
        yield group


def _measured(model: ComparedModel) -> Measured:
    assert model.mean_kl is not None  # it is not the reference
    assert model.same_top is not None
    speeds = [mean for mean, _ in model.speeds.values()]
    return Measured(model.mean_kl[0], model.same_top, speeds[0] if speeds else 0.0, model.memory)
