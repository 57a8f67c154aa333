"""A tokenizer inside llama.cpp: our metadata as a GGUF file without tensors, loaded for its vocabulary only."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import llama_cpp

from llmkit.formats.gguf import Value, f32, plan_layout, string, u32
from tests import peer

# What the loader asks of any file of this architecture.
ARCHITECTURE = {
    "general.architecture": string("llama"),
    "llama.context_length": u32(512),
    "llama.embedding_length": u32(64),
    "llama.block_count": u32(1),
    "llama.feed_forward_length": u32(64),
    "llama.attention.head_count": u32(1),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    "llama.rope.dimension_count": u32(64),
}


class LlamaVocabulary:
    """The vocabulary in `metadata` as llama.cpp sees it, written to `path`. A context manager."""

    def __init__(self, metadata: Mapping[str, Value], path: Path) -> None:
        path.write_bytes(plan_layout({**ARCHITECTURE, **metadata}, []).header)
        peer.silence()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp does not load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode("utf-8")
        room = 2 * len(data) + 16
        buffer = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, add_special, parse_special)
        assert n >= 0, f"{-n} tokens"
        return list(buffer[:n])

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to the output, special tokens included."""
        buffer = ctypes.create_string_buffer(4096)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 4096, 0, True)
        assert n >= 0
        return buffer.raw[:n]

    def decode(self, tokens: list[int]) -> bytes:
        return b"".join(self.piece(token) for token in tokens)

    def special(self) -> dict[str, int]:
        """bos, eos, eot, pad and so on, -1 for none."""
        kinds = ["bos", "eos", "eot", "sep", "pad", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"]
        return {kind: getattr(llama_cpp, f"llama_vocab_{kind}")(self._vocab) for kind in kinds}

    def adds_bos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    def adds_eos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_eos(self._vocab))

    def ends_generation(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_model_free(self._model)
