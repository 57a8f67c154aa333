"""Tiny random models, made and saved by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from shutil import copyfile
from typing import Any, Final
from zlib import crc32

import numpy as np
from gguf import GGUFReader
from make_checkpoint import CONTROL_TOKEN, metadata, packaged_gguf, write_tokenizer
from minilm_weights import minilm_checkpoint

from parities import sentencepieces
from parities.row import SIZES, Row
from tests.convert.trained import train_unigram

# Parameters whose start values say something: they keep them, with some noise.
_MEANINGFUL: Final = ("A_log", ".D", "dt_bias", "dt_proj.bias")


def make(name: str, row: Row, folder: Path) -> Any:
    """Write the checkpoint of `row` to `folder` and return transformers' model, float32."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    n_vocab, special = TOKENIZERS[row.tokenizer](folder)
    settings = dict(row.settings)
    if "text_config" in settings:
        settings["text_config"] = _with_sizes(settings["text_config"], n_vocab, special)
    else:
        settings = _with_sizes(settings, n_vocab, special)
    config = getattr(transformers, row.config)(**settings)
    auto = getattr(transformers, row.auto)
    with torch.random.fork_rng(devices=[]):
        # Some of what transformers draws stays, such as half of GPT-OSS's sinks.
        torch.manual_seed(crc32(name.encode()))
        model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    _randomise(model, name, row.spread)
    if row.prepare is not None:
        row.prepare(model)
    model.save_pretrained(folder)
    if row.rewrite is not None:
        _rewrite(folder, row)
    return model


def _with_sizes(settings: Mapping[str, Any], n_vocab: int, special: Special) -> dict[str, Any]:
    settings = {**SIZES, "vocab_size": n_vocab, **special, **settings}
    return {key: value for key, value in settings.items() if value is not None or key not in SIZES}


def _randomise(model: Any, name: str, spread: float) -> None:
    """Weights by which every part of the model shows in the logits."""
    import torch

    routers = ((key, buffer) for key, buffer in model.named_buffers() if key.endswith("e_score_correction_bias"))
    with torch.no_grad():
        for key, parameter in (*model.named_parameters(), *routers):
            random = np.random.default_rng(crc32(f"{name} {key}".encode()))
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape), np.float32))
            if parameter.dim() < 2 or key.endswith(_MEANINGFUL):
                parameter.add_(0.2 * noise)  # norms about 1 (or 0, where one is added), biases about 0
            else:
                parameter.copy_(spread * noise)
        model.tie_weights()


def _rewrite(folder: Path, row: Row) -> None:
    from safetensors.torch import load_file, save_file

    assert row.rewrite is not None
    config = json.loads((folder / "config.json").read_text())
    tensors, config = row.rewrite(load_file(folder / "model.safetensors"), config)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


Special = dict[str, Any]  # the ids of special tokens for the config


@cache
def _smollm2() -> dict[str, Any]:
    return metadata(GGUFReader(packaged_gguf()))


def smollm2(folder: Path) -> tuple[int, Special]:
    """SmolLM2's own, of 49,152 tokens: the peer's converter knows it."""
    meta = _smollm2()
    write_tokenizer(folder, meta)
    ids = {f"{kind}_token_id": meta[f"tokenizer.ggml.{kind}_token_id"] for kind in ("bos", "eos")}
    return len(meta["tokenizer.ggml.tokens"]), {**ids, "pad_token_id": None}


def glm(folder: Path) -> tuple[int, Special]:
    """SmolLM2's with the tokens that end a turn of GLM-4's, which the peer's converter looks for."""
    meta = {**_smollm2()}
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    turns = ["<|user|>", "<|observation|>"]
    meta["tokenizer.ggml.tokens"] = tokens + turns
    meta["tokenizer.ggml.token_type"] = [*meta["tokenizer.ggml.token_type"], *[CONTROL_TOKEN] * len(turns)]
    end = tokens.index("<|endoftext|>")
    meta |= {f"tokenizer.ggml.{kind}_token_id": end for kind in ("bos", "eos", "padding", "unknown")}
    write_tokenizer(folder, meta)
    ids = [end, *range(len(tokens), len(tokens) + len(turns))]
    return len(tokens) + len(turns), {"eos_token_id": ids, "pad_token_id": end}


def minilm(folder: Path) -> tuple[int, Special]:
    """BERT's WordPiece of 30,522 lowercase tokens, as all-MiniLM-L6-v2 has it, and how that pools."""
    source = minilm_checkpoint()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json"):
        copyfile(source / name, folder / name)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    copyfile(source / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    return 30522, {"pad_token_id": 0}


def unigram(folder: Path) -> tuple[int, Special]:
    """A Unigram tokenizer as XLM-RoBERTa has it, trained for the purpose, with SentencePiece's normalisation."""
    tokenizer = train_unigram(folder)
    return tokenizer.get_vocab_size(), {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


TOKENIZERS: Final[dict[str, Callable[[Path], tuple[int, Special]]]] = {
    "gemma": sentencepieces.gemma,
    "gemma3": sentencepieces.gemma3,
    "glm": glm,
    "minilm": minilm,
    "phi3": sentencepieces.phi3,
    "smollm2": smollm2,
    "unigram": unigram,
}
