"""What scripts/gpu_check runs: the same model on CPU and GPU, logits and speed side by side."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from benchmarks.report import table
from numpy.typing import NDArray

import llmkit
from llmkit import SamplingOptions
from llmkit.errors import EngineError

_ROOT: Final = Path(__file__).resolve().parent.parent
_PROMPT: Final = "A lighthouse keeper writes down, every evening, what the sea looked like. Tonight it was"
_DECODED: Final = 32
# Of the range of the logits: float16 activations, and scales in float16.
_LARGEST_SHARE: Final = {"onnx-fp16": 0.02, "onnx-int8": 0.05, "onnx-int4": 0.05}


@dataclass(frozen=True)
class Run:
    """One model on one device: logits of the prompt, float32 [n_tokens, n_vocab], and tokens per second."""

    name: str
    device: str
    logits: NDArray[np.float32]
    text: str
    prompt_speed: float
    decode_speed: float


def main() -> int:
    """Convert, run, print the table; status 1 if a GPU's logits are not the CPU's."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: SmolLM2-135M-Instruct, made if need be")
    parser.add_argument("--target", action="append", choices=tuple(_LARGEST_SHARE), help="default: all")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or _smollm2()
    targets = arguments.target or list(_LARGEST_SHARE)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = []
        if find_spec("llama_cpp"):
            gguf = llmkit.convert(checkpoint, "gguf-q4_k_m", output=folder / "q4_k_m.gguf").path
            runs.append(_run(gguf, "gguf-q4_k_m", "llama.cpp, CPU", None))
        problems = []
        reason = ""
        for target in targets:
            for_gpu = llmkit.convert(checkpoint, target, output=folder / target, provider="cuda").path
            runs.append(on_cpu := _run(for_gpu, target, "CPU", "cpu"))
            try:
                runs.append(on_gpu := _run(for_gpu, target, "CUDA", "cuda"))
            except EngineError as error:
                reason = str(error)
                continue
            share = float(np.abs(on_gpu.logits - on_cpu.logits).max() / np.ptp(on_cpu.logits))
            if share > _LARGEST_SHARE[target]:
                problems.append(f"{target}: logits on the GPU are {share:.1%} of their range away from the CPU's")
    print(_table(runs))
    if reason:
        print(f"\nNothing ran on a GPU: {reason}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _run(path: Path, name: str, device: str, asked: str | None) -> Run:
    options: dict[str, Any] = {} if asked is None else {"device": asked}
    with llmkit.load(path, n_context=512, **options) as session:
        ids = session.tokenize(_PROMPT)
        logits = session.logits(ids)
        greedy = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=_DECODED)
        list(session.generate(ids, greedy))  # warms up
        session.logits([ids[0]])
        text = "".join(session.generate(ids, greedy))
        stats = session.stats
        prompt_speed = stats.n_prompt / stats.prompt_seconds
        return Run(name, device, logits, text, prompt_speed, (stats.n_generated - 1) / stats.generate_seconds)


def _table(runs: list[Run]) -> str:
    rows = []
    on_cpu: dict[str, Run] = {}
    for run in runs:
        reference = on_cpu.setdefault(run.name, run)
        difference = "" if reference is run else f"{np.abs(run.logits - reference.logits).max():.2e}"
        same = "" if reference is run else "same" if run.text == reference.text else "differs"
        rows.append(
            (run.name, run.device, difference, f"{np.ptp(run.logits):.1f}", same, f"{run.prompt_speed:.0f} tokens/s",
             f"{run.decode_speed:.0f} tokens/s")
        )  # fmt: skip
    head = ("", "device", "largest |logit difference|", "range", "greedy text", "prompt", "decode")
    return table(f"{_DECODED} tokens after a prompt of {len(runs[0].logits)}", head, rows)


def _smollm2() -> Path:
    folder = _ROOT / "build" / "bench" / "SmolLM2-135M-Instruct"
    if not folder.exists():
        subprocess.run([sys.executable, str(_ROOT / "scripts" / "make_checkpoint.py"), str(folder)], check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
