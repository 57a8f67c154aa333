"""Speed and divergence of deployment formats on this machine: measured once, and kept for `llmkit formats`.

Kept in `formats.json` under `$LLMKIT_CACHE`, else under `$XDG_CACHE_HOME/llmkit`, else under `~/.cache/llmkit`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.deploymentformats import FORMATS, DeploymentFormat, container_of
from llmkit.errors import EvaluationError, LlmkitError
from llmkit.formats.strictjson import read_json_object
from llmkit.protocols import Progress


@dataclass(frozen=True, slots=True)
class FormatFigures:
    """What one form of a model gave: nats from the original's predictions, share of the same most likely tokens, tokens
    a second one by one, bytes of the model's files."""

    target: str
    mean_kl: float
    same_top: float
    tokens_per_second: float
    size: int


@dataclass(frozen=True, slots=True)
class FormatMeasurements:
    """The forms of one model on one machine; `date` as 2026-11-26."""

    model: str
    machine: str
    date: str
    figures: tuple[FormatFigures, ...]

    def of(self, format: DeploymentFormat) -> FormatFigures | None:
        """Those of a format: of the form that its target names, or else of another one."""
        if format.target is None:
            return None
        same = [one for one in self.figures if container_of(one.target) == container_of(format.target)]
        return next((one for one in same if one.target == format.target), same[0] if same else None)

    def about(self) -> dict[str, Any]:
        """What was measured and where, for JSON."""
        return {"model": self.model, "machine": self.machine, "date": self.date}


def measure_formats(
    model: str, only: Sequence[str], *, threads: int | None, progress: Progress, note: Callable[[str], None]
) -> FormatMeasurements:
    """Convert a model to every format that is written and run here, or to the targets `only`, and measure each.

    note: is told what went wrong with one format; the others go on. The figures are kept for `read_measurements`.

    Raises EvaluationError if nothing could be measured, and what finding the model raises.
    """
    from llmkit.arguments import parse_target
    from llmkit.inspection import inspect_path
    from llmkit.machine import this_machine
    from llmkit.measuring import measure
    from llmkit.models import resolve

    for target in only:
        parse_target(target)
    found = resolve(model, want="convertible", progress=progress)
    inspection = inspect_path(found.path)
    usual = [one.target for one in FORMATS if one.target and one.runs_here and one.is_written_here]
    targets = list(only) or [target for target in usual if target != "safetensors"]
    figures = []
    for target in targets:
        try:
            results = measure(
                found,
                {target: 4 * inspection.n_params},
                n_params=inspection.n_params,
                n_context=inspection.hyperparameters.n_context or 512,
                limit=None,
                threads=threads,
                progress=progress,
            )
        except LlmkitError as error:
            note(f"note: {target} was not measured: {error}")
            continue
        one = results[target]
        figures.append(FormatFigures(target, one.mean_kl, one.agreement, one.tokens_per_second, one.size))
    if not figures:
        raise EvaluationError(f"{found.path}: no format could be measured")
    date = datetime.now(UTC).date().isoformat()
    result = FormatMeasurements(found.name, _machine_name(this_machine().processor), date, tuple(figures))
    path = _place()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def read_measurements() -> FormatMeasurements | None:
    """What was measured on this machine; None if nothing was, or not on a processor like this one."""
    from llmkit.machine import this_machine

    path = _place()
    if not path.is_file():
        return None
    try:
        values = read_json_object(path)
        figures = tuple(FormatFigures(**_object(one)) for one in values.pop("figures"))
        found = FormatMeasurements(**values, figures=figures)
    except (LlmkitError, KeyError, TypeError):  # of another version
        return None
    return found if found.machine == _machine_name(this_machine().processor) else None


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _machine_name(processor: str) -> str:
    return f"{processor}, {os.cpu_count()} CPUs"


def _place() -> Path:
    if root := os.environ.get("LLMKIT_CACHE"):
        return Path(root) / "formats.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmkit" / "formats.json"
