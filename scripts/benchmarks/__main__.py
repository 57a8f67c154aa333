"""Command line of scripts/bench."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import conversion, evaluation, kernels, onnxmodels, opening, peer, startup
from benchmarks.report import machine

SCRIPTS = Path(__file__).resolve().parent.parent
FOLDER = SCRIPTS.parent / "build" / "bench"


def main() -> None:
    """Parse the command line, make the models needed, measure, print tables to stdout."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure llmkit against its peers.")
    parser.add_argument("what", choices=("convert", "startup", "open", "kernels", "onnx", "onnx-blocks", "eval", "all"))
    parser.add_argument("--quick", action="store_true", help="small models and one repetition: a look, not a result")
    parser.add_argument("--repeat", type=int, help="repetitions (default 3; --help and opening take more or fewer)")
    parser.add_argument("--threads", type=int, default=2, help="for llmkit and for the peer's quantiser (default 2)")
    parser.add_argument("--peer", type=Path, help="unpacked llama-cpp-python source archive, or a llama.cpp checkout")
    parser.add_argument("--no-peer", action="store_true", help="measure llmkit alone")
    only_kernels = parser.add_argument_group("for kernels")
    only_kernels.add_argument("--type", action="append", default=[], help="measure this type only; may be repeated")
    only_kernels.add_argument("--json", action="store_true", help="print JSON instead of tables")
    only_kernels.add_argument("--write-readme", action="store_true", help="also put the tables into README.md")
    arguments = parser.parse_args()
    if (arguments.type or arguments.json or arguments.write_readme) and arguments.what != "kernels":
        parser.error("--type, --json and --write-readme belong to kernels")
    if arguments.write_readme and (arguments.type or arguments.quick):
        parser.error("--write-readme wants a full run, without --type and --quick")
    if arguments.what == "kernels":
        measure_kernels(arguments)
        return

    FOLDER.mkdir(parents=True, exist_ok=True)
    everything = arguments.what == "all"
    repeat = arguments.repeat or (1 if arguments.quick else 3)
    print(machine())
    converter = None
    if not arguments.no_peer and arguments.what not in ("open", "onnx", "onnx-blocks", "eval"):
        converter = peer.find_converter(arguments.peer)
    if everything or arguments.what == "startup":
        show(startup.help_text(1 if arguments.quick else 3 * repeat, converter, FOLDER / "log.txt"))
        show(startup.first_conversion(random_model("llama-60m", 1), FOLDER))
    if everything:
        show(kernels.as_tables(kernels.measure([], arguments.quick), arguments.quick))
    if everything or arguments.what == "open":
        show(opening.open_vocabulary(32_768 if arguments.quick else 262_144, repeat, FOLDER))
    if everything or arguments.what == "convert":
        options = conversion.Options(repeat, arguments.threads, FOLDER, converter)
        show(conversion.unquantised(smollm2(), options))
        shape, shards = ("llama-60m", 2) if arguments.quick else ("llama-1b", 6)
        show(conversion.quantised(random_model(shape, shards), options))

    if everything or arguments.what == "onnx":
        options = conversion.Options(repeat, arguments.threads, FOLDER, converter)
        shape, shards = ("llama-60m", 2) if arguments.quick else ("llama-1b", 6)
        show(onnxmodels.conversion(random_model(shape, shards), options, not arguments.no_peer))
        show(onnxmodels.quality(dithered(), options, 2 if arguments.quick else 16, not arguments.no_peer))
    if everything or arguments.what == "eval":
        options = conversion.Options(repeat, arguments.threads, FOLDER, converter)
        show(evaluation.overhead(q4_k_m(), options, arguments.quick))
    if arguments.what == "onnx-blocks":  # a matter of choosing defaults
        options = conversion.Options(repeat, arguments.threads, FOLDER, converter)
        windows = 2 if arguments.quick else 16
        show(onnxmodels.quality(dithered(), options, windows, not arguments.no_peer, onnxmodels.BLOCKS))


def measure_kernels(arguments: argparse.Namespace) -> None:
    """All of scripts/bench kernels."""
    on = machine()
    results = kernels.measure(arguments.type, arguments.quick)
    tables = kernels.as_tables(results, arguments.quick)
    show(kernels.as_json(results, on) if arguments.json else f"{on}\n{tables}")
    if arguments.write_readme:
        kernels.write_readme(f"{on}\n{tables}")


def show(table: str) -> None:
    """Print a finished table at once: the next one may take minutes."""
    print(table, flush=True)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct in bf16."""
    return _made("SmolLM2-135M-Instruct", "make_checkpoint.py")


def dithered() -> Path:
    """The same with its weights spread inside their quantisation cells."""
    return _made("SmolLM2-135M-Instruct-dithered", "make_checkpoint.py", "--dither")


def q4_k_m() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file of type Q4_K_M."""
    import llmkit

    path = FOLDER / "SmolLM2-135M-Instruct-Q4_K_M.gguf"
    return path if path.is_file() else llmkit.convert(smollm2(), "gguf-q4_k_m", output=path).path


def random_model(shape: str, shards: int) -> Path:
    """A Llama-shaped checkpoint with random weights."""
    return _made(f"{shape}-{shards}-shards", "make_random_checkpoint.py", "--shape", shape, "--shards", str(shards))


def _made(name: str, script: str, *options: str) -> Path:
    """The folder below build/bench; models are kept between runs."""
    folder = FOLDER / name
    if not folder.exists():
        print(f"making {name} ...", file=sys.stderr)
        subprocess.run([sys.executable, str(SCRIPTS / script), *options, str(folder)], check=True)
    return folder


if __name__ == "__main__":
    main()
