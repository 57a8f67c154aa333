"""The function behind `llmkit eval --weights`: how far the weights of a GGUF file are from those of its source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.arguments import parse_bytes, thread_count
from llmkit.progress import Silent
from llmkit.protocols import Progress

if TYPE_CHECKING:
    from llmkit.convert.distance import WeightError
    from llmkit.convert.plan import ConversionPlan


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """The errors of every tensor of `file`, in its order."""

    file: Path
    source: Path
    tensors: tuple[WeightError, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "file": str(self.file),
            "source": str(self.source),
            "tensors": [
                {
                    "name": t.name,
                    "type": t.type.name,
                    "weights": t.n_weights,
                    "relative_rms_error": t.relative,
                    "cosine": t.cosine,
                    "largest_error": t.largest,
                }
                for t in self.tensors
            ],
        }


def compare_weights(
    file: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    threads: int | None = None,
    memory: int | str = "1GiB",
    progress: Progress | None = None,
) -> WeightComparison:
    """Compare the weights of a GGUF file with those of `source`: the checkpoint it was made of, or another GGUF file.

    threads: by default one per CPU of this process. memory: bound on the buffers of all threads.

    Raises EvaluationError if the two do not have the same tensors, and what opening them raises.
    """
    from llmkit.convert.distance import distances

    plans = [_plan(file, checkpoints=False), _plan(source, checkpoints=True)]
    found = distances(*plans, threads=thread_count(threads), memory=parse_bytes(memory), progress=progress or Silent())
    return WeightComparison(plans[0].source, plans[1].source, tuple(found))


def _plan(model: str | os.PathLike[str], *, checkpoints: bool) -> ConversionPlan:
    """What a model would be in float32, under the names that GGUF files have."""
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.gguf_source import open_source
    from llmkit.convert.gguf_target import plan_gguf
    from llmkit.convert.quantization import plan_quantize
    from llmkit.models import resolve
    from llmkit.quantize.recipes import find_recipe
    from llmkit.runtimes.tokenizing import LlamaCppJudge

    found = resolve(os.fspath(model), want=None if checkpoints else "gguf", download=False)
    recipe = find_recipe("f32")
    if found.kind == "gguf":
        return plan_quantize(open_source(found.path), recipe, allow_requantize=True)
    return plan_gguf(open_checkpoint(found.path), recipe, judge=LlamaCppJudge())
