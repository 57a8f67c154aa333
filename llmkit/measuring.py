"""Converting a model to several targets for real, and running them beside it: `--measure` of recommend and formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Final

from llmkit.evaluate.records import ComparedModel
from llmkit.models import ResolvedModel
from llmkit.protocols import Progress

_WINDOWS: Final = 8
_WINDOW: Final = 512
_GENERATED: Final = 64
_REPETITIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What a form of a model gave here: nats from the original's predictions, share of the same most likely tokens,
    tokens a second one by one, bytes of memory, and of its files."""

    mean_kl: float
    agreement: float
    tokens_per_second: float
    memory: int | None
    size: int = 0


def measure(
    model: ResolvedModel,
    needs: Mapping[str, int],
    *,
    n_params: int,
    n_context: int,
    limit: int | None,
    threads: int | None,
    progress: Progress,
) -> dict[str, Measured]:
    """Convert the model to targets, in a folder here that is removed again, and measure each.

    needs: the targets, and the bytes of memory that each takes when it runs. limit: bytes of memory that models may
    take together. The reference is the checkpoint in transformers if that is installed and fits, or else the model in
    bf16 on llama.cpp.

    Raises what converting and comparing raise.
    """
    from llmkit.comparison import compare

    found: dict[str, Measured] = {}
    with TemporaryDirectory(prefix=".llmkit-measure-", dir=".") as name:
        folder = Path(name)
        reference, its_need = _reference(model, n_params, folder, limit, progress)
        room = None if limit is None else limit - its_need
        for number, group in enumerate(_groups(needs, room)):
            files = {target: _written(model, target, folder / str(number), progress) for target in group}
            result = compare(
                list(files.values()),
                reference=reference,
                context=min(_WINDOW, n_context),
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
            found |= {target: _measured(one) for target, one in zip(group, result.models[1:], strict=True)}
            rmtree(folder / str(number))  # the next ones need the space
    return found


def _reference(
    model: ResolvedModel, n_params: int, folder: Path, limit: int | None, progress: Progress
) -> tuple[Path | ResolvedModel, int]:
    """The model to compare with, and the memory that it takes."""
    in_float32 = 4 * n_params
    if model.kind == "gguf":
        return model, 2 * n_params
    if find_spec("torch") and find_spec("transformers") and (limit is None or 2 * in_float32 < limit):
        return model, in_float32
    return _written(model, "gguf-bf16", folder / "reference", progress), 2 * n_params


def _written(model: ResolvedModel, target: str, folder: Path, progress: Progress) -> Path:
    from llmkit.api import convert, quantize

    folder.mkdir(exist_ok=True)
    is_gguf = target.startswith("gguf-")
    target, _, recipe = target.partition(" --recipe ")
    output = folder / f"{'-'.join(filter(None, (target, recipe)))}{'.gguf' if is_gguf else ''}"
    if is_gguf and model.kind == "gguf":
        return quantize(model.path, target, output=output, progress=progress).path
    return convert(model, target, output=output, recipe=recipe or None, progress=progress).path


def _groups(needs: Mapping[str, int], room: int | None) -> Iterator[list[str]]:
    """Those that are in memory together, beside the reference; one at least."""
    group: list[str] = []
    for target in needs:
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
    return Measured(model.mean_kl[0], model.same_top, speeds[0] if speeds else 0.0, model.memory, model.size)
