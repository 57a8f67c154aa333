"""Converting one model to one format, and running it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deployments.environments import Environment
from llmkit.convert.frameworks.registry import find_framework_target
from llmkit.deploymentformats import container_of, formats_by_target
from llmkit.formats.exported import model_bytes, read_exported


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. seconds, peak: of the conversion, its memory in bytes, mapped files included. size: bytes of the
    model's files. installed: bytes of the environment. checked: what `check.py` says; empty where it does not run here.
    """

    model: str
    target: str
    precision: str
    seconds: float = 0.0
    peak: int = 0
    size: int = 0
    installed: int = 0
    versions: Mapping[str, str] | None = None
    checked: Mapping[str, Any] | None = None
    problem: str = ""

    def is_good(self, tolerance: Mapping[str, float]) -> bool:
        """Whether tokens and logits are transformers', where the precision promises that."""
        if self.checked is None or self.precision not in tolerance:
            return True
        all_same = bool(self.checked["same_tokens"] == self.checked["tokens"])
        return all_same and bool(self.checked["difference"] < tolerance[self.precision])

    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        if self.problem:
            return (self.model, self.target, self.problem, *[""] * 7)
        made = (self.model, self.target, f"{self.seconds:.0f}", f"{self.peak / 1e9:.1f}", f"{self.size / 1e6:.0f}")
        if self.checked is None:
            return (*made, "not run here", "", "", "", "")
        found = self.checked
        same = "equal" if found["same_tokens"] == found["tokens"] else f"first {found['same_tokens']}"
        exactness = (same, f"{found['difference']:.1g}", f"{found['mean_kl']:.2g}")
        return (*made, *exactness, f"{found['prefill']:.0f}", f"{found['decode']:.1f}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure(
    environment: Environment, model: Path, target: str, reference: Path, output: Path, context: int | None
) -> Outcome:
    """Convert `model` to `output`, which is removed again, and run it there."""
    found = find_framework_target(target)
    assert found is not None
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(environment.python), "-m", "llmkit", "-q", "convert", str(model.resolve()), "--to", target]
    command += ["-o", str(output), *(() if context is None else ("--context", str(context)))]
    started = time.monotonic()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        return Outcome(model.name, target, found.precision, problem=_last_line(told))
    try:
        exported = read_exported(output)
        made = Outcome(
            model.name,
            target,
            found.precision,
            seconds,
            usage.ru_maxrss * 1024,
            model_bytes(output),
            environment.installed,
            exported.values["versions"],
        )
        if formats_by_target()[container_of(target)].runs is None:
            return made
        scripts = str(Path(__file__).resolve().parents[1])
        checked = subprocess.run(
            [str(environment.python), "-m", "deployments.check", str(output), str(reference)],
            env={**environ, "PYTHONPATH": scripts},
            capture_output=True,
            check=False,
            cwd="/",
        )
        if checked.returncode:
            return Outcome(model.name, target, found.precision, problem=_last_line(checked.stderr))
        return replace(made, checked=json.loads(checked.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _last_line(told: bytes) -> str:
    lines = told.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "ended without a word"
