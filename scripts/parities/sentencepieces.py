"""Small SentencePiece tokenizers laid out as those of Gemma and Phi-3: tokenizer.model and the files beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from tests.convert.trained import hf_from_sentencepiece, sentencepiece_model, write_json

N_PIECES: Final = 1500

# Gemma's pieces 4 to 173: user-defined in tokenizer.model, and few of them special by the JSON files.
_GEMMA: Final = (
    *("<mask>", "<2mass>", "[@BOS@]"),
    *(f"<unused{i}>" for i in range(99)),
    *("<start_of_turn>", "<end_of_turn>"),
    *("\n" * n for n in range(1, 32)),
    *("▁" * n for n in range(2, 32)),
    *("<table>", "<caption>", "<thead>", "<h1>", "</h1>"),
)
_GEMMA_SPECIAL: Final = frozenset(("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"))
# After the pieces.
_GEMMA3_ADDED: Final = "<image_soft_token>"
_PHI3_ADDED: Final = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")


@cache
def _gemma() -> bytes:
    names = {f"{kind}_piece": f"<{kind}>" for kind in ("pad", "eos", "bos")}
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    symbols = list(_GEMMA)
    return sentencepiece_model(
        vocab_size=N_PIECES, add_dummy_prefix=False, user_defined_symbols=symbols, **ids, **names
    )


@cache
def _llama() -> bytes:
    return sentencepiece_model(vocab_size=N_PIECES)


def gemma(folder: Path) -> tuple[int, dict[str, Any]]:
    """No space before the text, runs of newlines and of spaces as pieces, and as many rows as pieces."""
    added = _gemma_tokens()
    _write(folder, _gemma(), "replace", added, tokenizer_class="GemmaTokenizer", bos="<bos>", eos="<eos>", pad="<pad>")
    return N_PIECES, {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0}


def gemma3(folder: Path) -> tuple[int, dict[str, Any]]:
    """The same with a token for images after the pieces, and an embedding with rows to spare."""
    added = {**_gemma_tokens(), N_PIECES: _token(_GEMMA3_ADDED, special=True)}
    _write(folder, _gemma(), "replace", added, tokenizer_class="GemmaTokenizer", bos="<bos>", eos="<eos>", pad="<pad>")
    write_json(folder / "added_tokens.json", {_GEMMA3_ADDED: N_PIECES})
    return N_PIECES + 64, {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0}


def phi3(folder: Path) -> tuple[int, dict[str, Any]]:
    """Llama 2's kind, with tokens for conversations after the pieces, and rows to spare.

    Most tokens swallow the spaces after them, as published; llama.cpp does so where general.name has "phi3" in it.
    """
    texts = {0: "<unk>", 1: "<s>", 2: "</s>", **dict(enumerate(_PHI3_ADDED, start=N_PIECES))}
    end = _PHI3_ADDED[0]
    added = {
        id: _token(text, special=text != "</s>", rstrip=text not in ("<unk>", "<s>", end)) for id, text in texts.items()
    }
    _write(folder, _llama(), "prepend", added, tokenizer_class="LlamaTokenizer", bos="<s>", eos=end, pad=end)
    return N_PIECES + 64, {"bos_token_id": 1, "eos_token_id": N_PIECES, "pad_token_id": N_PIECES}


def _gemma_tokens() -> dict[int, AddedToken]:
    texts = ("<pad>", "<eos>", "<bos>", "<unk>", *_GEMMA)
    return {id: _token(text, special=text in _GEMMA_SPECIAL) for id, text in enumerate(texts)}


def _token(text: str, *, special: bool, rstrip: bool = False) -> AddedToken:
    return AddedToken(text, normalized=False, special=special, rstrip=rstrip)


def _write(
    folder: Path,
    model: bytes,
    style: str,
    added: dict[int, AddedToken],
    *,
    tokenizer_class: str,
    bos: str,
    eos: str,
    pad: str,
) -> None:
    """tokenizer.model, tokenizer.json and tokenizer_config.json; `style`: see `hf_from_sentencepiece`."""
    (folder / "tokenizer.model").write_bytes(model)
    hf = hf_from_sentencepiece(SentencePieceProcessor(model_proto=model), style)
    for id, token in sorted(added.items()):
        (hf.add_special_tokens if token.special else hf.add_tokens)([token])
        assert hf.token_to_id(token.content) == id, f"{token.content!r} is token {hf.token_to_id(token.content)}"
    hf.save(str(folder / "tokenizer.json"))
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {id: {key: getattr(token, key) for key in keys} for id, token in added.items()},
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "unk_token": "<unk>",
            "tokenizer_class": tokenizer_class,
        },
    )
