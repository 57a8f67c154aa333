"""The command line of `scripts/formats`."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from deployments.environments import environment, extras_of
from deployments.measuring import Outcome, measure
from deployments.reference import write_reference, write_tiny
from llmkit.convert.frameworks.registry import FRAMEWORKS

# By target: how far logits may be from transformers'; quantised weights only tell.
TOLERANCE: Final = {"fp32": 2e-3, "fp16": 2e-2}


def main() -> int:
    """Convert, check, print; the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/formats")
    parser.add_argument("targets", nargs="*", help="such as torch or openvino-int4; by default one of each format")
    parser.add_argument("--model", type=Path, help="a checkpoint; by default a tiny one of two layers")
    parser.add_argument(
        "--family", action="append", help="of the tiny model, such as gpt_oss; several are converted all"
    )
    parser.add_argument("--context", type=int, help="of the cache; by default as llmkit convert has it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--remove", action="store_true", help="remove each environment when it is done")
    arguments = parser.parse_args()
    targets = arguments.targets or list(FRAMEWORKS)
    outcomes = []
    with TemporaryDirectory(prefix="llmkit-formats-") as name:
        folder = Path(name)
        models = [arguments.model] if arguments.model else []
        models += [write_tiny(folder / name, name) for name in arguments.family or ([] if models else ["llama"])]
        references = {model: write_reference(model, folder / f"{model.name}.npz") for model in models}
        for extras, same in groupby(targets, extras_of):
            with environment(extras, remove=arguments.remove) as found:
                for target, (model, reference) in product(same, references.items()):
                    outcome = measure(found, model, target, reference, folder / "output", arguments.context)
                    outcomes.append(outcome)
                    print(f"{model.name} to {target}: {outcome.problem or 'done'}", file=sys.stderr, flush=True)
    print(table(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps([outcome.to_dict() for outcome in outcomes], indent=2) + "\n")
    return int(any(outcome.problem or not outcome.is_good(TOLERANCE) for outcome in outcomes))


def table(outcomes: list[Outcome]) -> str:
    """In Markdown."""
    head = (
        "model",
        "target",
        "convert, s",
        "peak memory, GB",
        "size, MB",
        "greedy tokens",
        "max logit diff",
        "mean KL",
        "prefill",
        "decode",
    )
    lines = [head, ("---",) * len(head), *(outcome.row() for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
