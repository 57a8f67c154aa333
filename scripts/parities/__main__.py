"""Command line of scripts/parity."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peer import find_converter
from benchmarks.report import table

from parities.checking import Result, check, folder_name, gguf_of
from parities.explained import explain
from parities.families import FAMILIES
from parities.files import FilesResult, compare_files, convert_with_peer
from parities.logits import LogitsResult
from parities.states import StatesResult


def main() -> int:
    """Compare the families asked for, or all, and print a table; status 1 if one is not as it should be."""
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("family", nargs="*", help=f"of {', '.join(FAMILIES)}; all if none is named")
    parser.add_argument(
        "--peer", type=Path, help="llama.cpp's sources or llama-cpp-python's source archive: compare files with theirs"
    )
    parser.add_argument("--keep", type=Path, help="a folder to keep models and files in")
    parser.add_argument("--verbose", action="store_true", help="print every difference")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.family if name not in FAMILIES]:
        parser.error(f"unknown family {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    names = arguments.family or list(FAMILIES)
    with TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        folders = {name: place / folder_name(name) for name in names}
        results: dict[str, Result | str] = {}
        for name in names:
            try:
                results[name] = check(name, FAMILIES[name], folders[name])
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"
            print(name, file=sys.stderr, flush=True)
        files = _compare_with_peer(folders, results, arguments.peer) if arguments.peer else {}
    print(_table(results, files))
    for name, result in results.items():
        if isinstance(result, str):
            print(f"{name}: {result}")
            continue
        for line in result.back if arguments.verbose else result.back[:4]:
            print(f"{name}: way back: {line}")
        if result.tokens and arguments.verbose:
            print(f"{name}: tokens differ for {result.tokens}")
    seconds = sum(result.seconds for result in results.values() if isinstance(result, Result))
    print(f"llmkit's conversions to f32 took {seconds:.0f} s together.")
    unexplained = _print_differences(files, arguments.verbose)
    return 0 if not unexplained and all(isinstance(r, Result) and r.is_good for r in results.values()) else 1


def _print_differences(files: dict[str, FilesResult | str], verbose: bool) -> int:
    """Print what files say otherwise than the peer's, and why; returns how many differences have no known reason."""
    reasons: dict[str, Counter[str]] = {}
    unexplained = 0
    for name, found in files.items():
        lines = [found] if isinstance(found, str) else [*found.tensors, *found.metadata]
        for line in lines:
            why = explain(name, line)
            if why is None:
                unexplained += 1
            else:
                reasons.setdefault(why, Counter())[name] += 1
            if verbose or why is None:
                print(f"{name}: {line}")
    if reasons:
        print("Differences from the peer's files, and why:")
    for why, rows in reasons.items():
        print(f"- {'; '.join(rows)}: {why}")
    return unexplained


def _compare_with_peer(
    folders: dict[str, Path], results: dict[str, Result | str], peer: Path
) -> dict[str, FilesResult | str]:
    jobs = [(folder, gguf_of(folder, ours=False)) for name, folder in folders.items() if folder.is_dir()]
    failed = convert_with_peer(find_converter(peer), jobs)
    found: dict[str, FilesResult | str] = {}
    for name, folder in folders.items():
        theirs = gguf_of(folder, ours=False)
        if theirs in failed or not theirs.exists():
            found[name] = f"the peer failed: {failed.get(theirs, 'no file')}"
        elif isinstance(results[name], Result):
            found[name] = compare_files(gguf_of(folder), theirs)
    return found


def _table(results: dict[str, Result | str], files: dict[str, FilesResult | str]) -> str:
    rows = []
    for name, result in results.items():
        if isinstance(result, str):
            rows.append((name, "failed", *[""] * 11))
            continue
        found = files.get(name)
        rows.append(
            (
                name,
                "good" if result.is_good else "NOT GOOD",
                *_figures(result.logits),
                "same" if not result.tokens else f"{len(result.tokens)} differ",
                "same" if not result.back else f"{len(result.back)} differ",
                *_onnx_figures(result.onnx),
                "" if found is None else "failed" if isinstance(found, str) else _count(name, found.tensors),
                "" if found is None or isinstance(found, str) else _count(name, found.metadata),
            )
        )
    head = (
        *("family", "", "range", "prefill", "step", "median", "argmax", "tokens"),
        *("way back", "ONNX", "ONNX step", "peer's tensors", "peer's keys"),
    )
    title = "Largest |difference| from transformers, float32, 64 tokens: of logits, of encoders' hidden states"
    return table(title, head, rows)


def _figures(found: LogitsResult | StatesResult) -> tuple[str, str, str, str, str]:
    if isinstance(found, StatesResult):
        own = f" ({found.as_trained:.1e} with its own GELU)" if found.as_trained != found.difference else ""
        return f"{found.range:.1f}", f"{found.difference:.1e}{own}", "", "", ""
    argmax = "same" if found.same_argmax else "differs"
    return f"{found.range:.1f}", f"{found.prefill:.1e}", f"{found.step:.1e}", f"{found.median:.1e}", argmax


def _onnx_figures(found: LogitsResult | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    argmax = "" if found.same_argmax else " argmax differs"
    return f"{found.prefill:.1e}{argmax}", f"{found.step:.1e}"


def _count(name: str, differences: tuple[str, ...]) -> str:
    unexplained = sum(explain(name, line) is None for line in differences)
    if unexplained:
        return f"{unexplained} differ"
    return f"{len(differences)} explained" if differences else "same"


if __name__ == "__main__":
    sys.exit(main())
