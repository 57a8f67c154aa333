"""vocab.json and merges.txt, byte-level BPE before there was tokenizer.json.

They hold no rules: text is split by the tokenizer's class, which tokenizer_config.json or the model's type tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.files import MAX_TOKENIZER_BYTES, TokenizerFiles
from llmkit.convert.tokenizer.splitting import DIGIT, GPT2, QWEN2, QWEN35
from llmkit.convert.tokenizer.stages import steps_of
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.formats.strictjson import read_json_object

_END: Final = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """What a class of transformers adds to the two files: stages, whether NFC comes first, special tokens."""

    stages: tuple[str, ...]
    normalizes: bool = False
    special: tuple[tuple[str, str], ...] = (("bos_token", _END), ("eos_token", _END), ("unk_token", _END))


_QWEN_SPECIAL: Final = (("eos_token", _END), ("pad_token", _END))
# Source: transformers 5, models/*/tokenization_*.py; the slow classes of transformers 4 do the same.
CLASSES: Final = {
    "GPT2Tokenizer": TokenizerClass((GPT2,)),
    "CodeGenTokenizer": TokenizerClass((GPT2,)),
    "GPTNeoXTokenizer": TokenizerClass((GPT2,), normalizes=True),
    "Qwen2Tokenizer": TokenizerClass((QWEN2,), normalizes=True, special=_QWEN_SPECIAL),
    "Qwen3_5Tokenizer": TokenizerClass((QWEN35,), normalizes=True, special=_QWEN_SPECIAL),
    "CohereTokenizer": TokenizerClass(
        (DIGIT, GPT2),
        normalizes=True,
        special=(("bos_token", "<BOS_TOKEN>"), ("eos_token", "<|END_OF_TURN_TOKEN|>"), ("unk_token", "<UNK>")),
    ),
}
# Where tokenizer_config.json does not name the class (transformers 5, models/auto/tokenization_auto.py).
_OF_MODELS: Final = {
    "GPT2Tokenizer": "codegen dbrx gpt2 gpt_bigcode gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "CohereTokenizer": "cohere cohere2",
}
_CLASS_OF: Final = {model: name for name, models in _OF_MODELS.items() for model in models.split()}


def has_vocab_and_merges(folder: Path) -> bool:
    """Whether the two files are there."""
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def with_tokenizer_json(files: TokenizerFiles, config: Mapping[str, Any]) -> TokenizerFiles:
    """The same files with the tokenizer.json that the two stand for; `config` is config.json.

    Raises FormatError for broken files, UnsupportedError for a class that llmkit does not know.
    """
    known = _class_of(files, config)
    steps = steps_of(known.stages)
    if files.config.get("add_prefix_space") is True:
        steps[-1]["add_prefix_space"] = True
    tokenizer: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if known.normalizes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": read_json_object(files.folder / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES),
            "merges": _read_merges(files.folder / "merges.txt"),
        },
    }
    return replace(
        files, tokenizer=tokenizer, tokenizer_name="vocab.json", config={**dict(known.special), **files.config}
    )


def _class_of(files: TokenizerFiles, config: Mapping[str, Any]) -> TokenizerClass:
    stated = files.config.get("tokenizer_class") or _CLASS_OF.get(str(config.get("model_type")))
    name = str(stated).removesuffix("Fast")
    if name not in CLASSES:
        raise UnsupportedError(
            f"{files.folder}: vocab.json and merges.txt do not say how text is split, and llmkit does not know the "
            f"class {stated!r} that does; it knows {', '.join(CLASSES)}. transformers writes tokenizer.json, which "
            'says it: AutoTokenizer.from_pretrained("<folder>").save_pretrained("<folder>")'
        )
    return CLASSES[name]


def _read_merges(path: Path) -> list[str]:
    """The merges, most important first: a pair on each line after the one that states the version."""
    file, size = open_regular(path)
    with file:
        if size > MAX_TOKENIZER_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected at most {MAX_TOKENIZER_BYTES:,}")
        data = read_exactly(file, size, path)
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not valid UTF-8 (byte {error.start})") from None
    lines = [line.removesuffix("\r") for line in lines]
    return [line for line in lines[lines[0].startswith("#version") :] if line]
