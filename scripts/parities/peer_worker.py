"""Runs llama.cpp's converter on several checkpoints in one process: importing torch takes longer than converting.

    peer_worker.py convert_hf_to_gguf.py OUTTYPE CHECKPOINT OUTPUT [CHECKPOINT OUTPUT ...]

Prints a line "OUTPUT<tab>reason" for each that failed.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

from transformers.models.auto import tokenization_auto


def main() -> None:
    """Convert one after the other."""
    # transformers gives this family its own tokenizer whatever the files say; the tiny models have another one.
    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard("qwen2")
    script, outtype, *rest = sys.argv[1:]
    sys.path.insert(0, str(Path(script).parent))
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", script)
    assert spec is not None
    assert spec.loader is not None
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    for checkpoint, output in zip(rest[::2], rest[1::2], strict=True):
        sys.argv = [script, checkpoint, "--outtype", outtype, "--outfile", output]
        try:
            converter.main()
        except (Exception, SystemExit) as error:
            logging.exception("%s", checkpoint)
            print(f"{output}\t{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
