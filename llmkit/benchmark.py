"""The function behind `llmkit bench`: models, each in a process of its own, and how fast they are."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import EvaluationError, LlmkitError
from llmkit.machine import nvidia_gpus, processor
from llmkit.progress import Silent
from llmkit.protocols import Progress
from llmkit.sessions import located

if TYPE_CHECKING:
    from llmkit.evaluate.journal import Journal
    from llmkit.models import ResolvedModel

DEFAULT_PROMPT: Final = 512
DEFAULT_GENERATED: Final = 128
DEFAULT_REPETITIONS: Final = 5
_MOST_TOKENS: Final = 1 << 20
_PACKAGES: Final = (
    *("llmkit", "llama-cpp-python", "onnxruntime-genai", "onnxruntime-genai-cuda", "torch", "transformers"),
)


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """One test of one model: tokens a second of every run.

    name: as llama-bench's, such as pp512, tg128, tg128 @ d1024.
    """

    name: str
    n_tokens: int
    runs: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.runs)

    @property
    def spread(self) -> float:
        """The standard deviation of the runs; 0 of a single one."""
        return statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """What was measured of one model.

    size: bytes of its files. load_seconds: until it could be used. first_token_seconds: from the first prompt's
    beginning to its first token, the mean of the runs; None where no prompt was measured. peak_resident: bytes of
    memory at most, mapped files included. anonymous: bytes that are no mapped files, at the end. Both None where the
    system does not tell. interrupted: whether Ctrl-C ended it, so that tests or runs are missing.
    """

    name: str
    engine: str
    architecture: str
    n_params: int
    size: int
    n_threads: int
    device: str
    load_seconds: float
    first_token_seconds: float | None
    peak_resident: int | None
    anonymous: int | None
    tests: tuple[SpeedTest, ...]
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All models, in the order in which they were measured, and the machine. gpus: names, where a model ran on one.

    interrupted: whether Ctrl-C ended it, so that models, tests or runs are missing.
    """

    models: tuple[ModelSpeed, ...]
    cpu: str
    n_cpus: int
    python: str
    repetitions: int
    versions: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    gpus: tuple[str, ...] = ()

    @property
    def machine(self) -> str:
        """Processor and GPUs in a few words."""
        return ", ".join((self.cpu, f"{self.n_cpus} CPUs", *self.gpus))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        for model, values in zip(self.models, found["models"], strict=True):
            for test, plain in zip(model.tests, values["tests"], strict=True):
                plain |= {"mean": test.mean, "spread": test.spread}
        return found


def bench(
    models: str | os.PathLike[str] | ResolvedModel | Sequence[str | os.PathLike[str] | ResolvedModel],
    *,
    prompt: Sequence[int] = (DEFAULT_PROMPT,),
    generated: Sequence[int] = (DEFAULT_GENERATED,),
    depths: Sequence[int] = (0,),
    repetitions: int = DEFAULT_REPETITIONS,
    threads: int | None = None,
    device: str | None = None,
    resume: str | os.PathLike[str] | Journal | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure how fast models are: prefill and decoding, loading, memory.

    models: one or several GGUF files, ONNX folders or checkpoints, named as on the command line. Each runs in a process
        of its own, one after the other.
    prompt, generated: numbers of tokens, 0 for none of the kind. depths: tokens that the cache holds before.
    repetitions: counted runs of every test, after one that does not count.
    threads: by default one per physical core. device: of ONNX models and checkpoints.
    resume: a file that keeps the results of every model; what it holds is not measured again.

    Ctrl-C keeps the models that are through.

    Raises EvaluationError for numbers that cannot be, and if a model does not get through; what finding one raises.
    """
    from llmkit.evaluate.journal import facts_of, journal
    from llmkit.evaluate.speed import tests
    from llmkit.models import ResolvedModel

    wanted = [models] if isinstance(models, str | os.PathLike | ResolvedModel) else list(models)
    for name, numbers in (("prompt", prompt), ("generated", generated), ("depths", depths)):
        if any(not 0 <= number <= _MOST_TOKENS for number in numbers):
            raise EvaluationError(f"{name}: numbers of tokens between 0 and {_MOST_TOKENS:,} are needed, not {numbers}")
    if repetitions < 1:
        raise EvaluationError(f"repetitions is {repetitions}; at least 1 is needed")
    what = tests(prompt, generated, depths)
    if not what or not wanted:
        raise EvaluationError("there is nothing to measure: give a model, and lengths of prompts or generations")
    resolved = [located(model) for model in wanted]
    settings = {
        "tests": [asdict(test) for test in what],
        "repetitions": repetitions,
        "n_threads": threads,
        "device": device,
        "versions": versions(),
        "cpu": processor(),
    }
    names = [(test.name, test.n_tokens) for test in what]
    progress = progress or Silent()
    found: list[ModelSpeed] = []
    with journal(resume) as results:
        kept = [
            results.about(what="bench", model=facts_of(model.path) if results.is_kept else None, **settings)
            for model in resolved
        ]
        known = [_from_record(section.get()) for section in kept]
        n_new = sum(speed is None for speed in known)
        progress.start("Measuring", n_new * len(what) * repetitions, "runs")
        try:
            for model, section, speed in zip(resolved, kept, known, strict=True):
                if speed is None:
                    request = settings | {
                        "path": str(model.path),
                        "device": device if model.kind != "gguf" else None,
                    }
                    speed = _run(model, request, names, progress)
                    if not speed.interrupted:
                        section.put(value=asdict(speed))
                found.append(speed)
                if speed.interrupted:
                    break
        except KeyboardInterrupt:
            progress.abort()
            if not found:
                raise
        except BaseException:
            progress.abort()
            raise
        else:
            progress.finish()
    return Benchmark(
        models=tuple(found),
        cpu=processor(),
        n_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        repetitions=repetitions,
        versions=versions(),
        interrupted=len(found) < len(resolved) or any(model.interrupted for model in found),
        gpus=tuple(gpu.name for gpu in nvidia_gpus()) if any(model.device == "cuda" for model in found) else (),
    )


def _told(line: str) -> dict[str, Any]:
    """What a line of the process says; nothing if it is not its own."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}


def _from_record(record: Any) -> ModelSpeed | None:
    """What `asdict` made of a model's results; None for anything else."""
    try:
        tests = tuple(SpeedTest(test["name"], test["n_tokens"], tuple(test["runs"])) for test in record["tests"])
        return ModelSpeed(**record | {"tests": tests})
    except (KeyError, TypeError):
        return None


def _run(
    model: ResolvedModel, request: dict[str, Any], names: Sequence[tuple[str, int]], progress: Progress
) -> ModelSpeed:
    """One model in a process of its own."""
    about: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    runs: list[list[float]] = [[] for _ in names]
    interrupted = False
    process = subprocess.Popen(
        # -P: nothing is imported from the current folder, which may be a stranger's model.
        [sys.executable, "-P", "-m", "llmkit.bench_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends the other
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # A process that has died reads nothing; that its results are missing is told below.
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(json.dumps(request))
        for line in process.stdout:
            values = _told(line)
            if "error" in values:
                raise LlmkitError(values["error"])
            if "seconds" in values:
                number = values["test"]
                runs[number].append(values["seconds"])
                name, n_tokens = names[number]
                progress.advance(1, f"{model.name}: {name}, {n_tokens / values['seconds']:.1f} tokens/s")
            elif "peak_resident" in values:
                memory = values
            elif "engine" in values:
                about = values
        process.wait()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if interrupted and not any(runs):
        raise KeyboardInterrupt
    if not interrupted and not memory:
        raise EvaluationError(f"{model.path}: the process that ran it ended with status {process.returncode}")
    first = next((i for i, (name, _) in enumerate(names) if name.startswith("pp") and runs[i]), None)
    return ModelSpeed(
        name=model.path.resolve().name,
        engine=about["engine"],
        architecture=about["architecture"],
        n_params=about["parameters"],
        size=size_of(model.path),
        n_threads=about["threads"],
        device=about["device"],
        load_seconds=about["load_seconds"],
        first_token_seconds=None if first is None else statistics.fmean(runs[first]),
        peak_resident=memory.get("peak_resident"),
        anonymous=memory.get("anonymous"),
        tests=tuple(
            SpeedTest(name, n_tokens, tuple(n_tokens / seconds for seconds in found))
            for (name, n_tokens), found in zip(names, runs, strict=True)
            if found
        ),
        interrupted=interrupted,
    )


def size_of(path: Path) -> int:
    """Bytes of the model's files: of a folder all that is weights or a graph."""
    from llmkit.formats.checkpointfiles import MANIFEST, whole_set
    from llmkit.formats.exported import model_bytes

    if (path / MANIFEST).is_file():
        return model_bytes(path)
    if path.is_dir():
        names = (".onnx", ".data", ".safetensors", ".bin")
        return sum(file.stat().st_size for file in path.iterdir() if file.name.endswith(names))
    return sum(file.stat().st_size for file in whole_set(path))


def versions() -> dict[str, str]:
    """Of llmkit and of the engines that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
