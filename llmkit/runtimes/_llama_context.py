"""A llama.cpp context: runs tokens through the model and remembers what its KV cache holds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.runtimes import _llama_log
from llmkit.runtimes._interrupt import InterruptFlag, deferred_interrupt
from llmkit.runtimes._prefix import common_prefix

PROMPT_BATCH: Final = 512
# Logits of a whole batch take n_tokens x n_vocab floats inside llama.cpp: 128 rows of 128 k tokens are 64 MiB.
OUTPUT_BATCH: Final = 128
# Asking for an abort after every graph node costs about 1 % of a batch of this size, and more of a single token.
_WATCHED_BATCH: Final = 8

_ABORTED: Final = 2  # llama_decode: stopped by the abort callback


class Context:
    """One sequence of tokens in a KV cache of `n_context` positions.

    `cached` lists the tokens whose keys and values are in memory. The memory may hold more behind them, after an
    interruption, never less: `keep_prefix` cuts it to size before anything is added. An encoder has no memory: all its
    tokens come in one batch, and `hidden_states` is what it is for.
    """

    def __init__(
        self,
        lib: Any,
        model: Any,
        *,
        n_context: int,
        n_threads: int,
        n_vocab: int,
        full_precision: bool,
        encoder: bool = False,
        n_branches: int = 0,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = n_context
        self._room = n_context if encoder else min(PROMPT_BATCH, n_context)
        params.n_batch = params.n_ubatch = self._room
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        params.n_outputs_max = params.n_outputs_max_per_seq = n_context if encoder else min(OUTPUT_BATCH, n_context)
        params.n_threads = params.n_threads_batch = n_threads
        if n_branches:  # sequences behind the one that everything else happens in; all share the cache's cells
            params.n_seq_max, params.kv_unified = 1 + n_branches, True
        if full_precision:
            params.type_k = params.type_v = lib.GGML_TYPE_F32
            # Flash attention rounds to float16 inside, whatever the cache holds.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._flag = InterruptFlag()
        self._abort = lib.ggml_abort_callback(lambda _data: self._flag.is_set)
        self._no_abort = lib.ggml_abort_callback()
        self._lib = lib
        self.pointer = lib.llama_init_from_model(model, params)
        if not self.pointer:
            raise EngineError(
                f"llama.cpp could not set up a context of {n_context} tokens: "
                f"{_llama_log.last_errors() or 'no reason given'}. A smaller context (--context, n_context) needs "
                "less memory."
            )
        self._memory = lib.llama_get_memory(self.pointer)
        self.is_encoder = encoder
        if not self._memory and not encoder:  # it would end the process at a batch that was set up for a decoder
            lib.llama_free(self.pointer)
            raise EngineError(
                "llama.cpp has no KV cache for this architecture, yet the file does not say that it is an encoder "
                "(attention.causal false): it was not converted as it should be"
            )
        self._n_swa: int = lib.llama_model_n_swa(model)
        self.n_context = n_context
        self.n_branches = n_branches
        self.n_vocab = n_vocab
        self.n_embd: int = lib.llama_model_n_embd_out(model)
        self.cached: list[int] = []

        self._tokens = np.zeros(self._room, np.int32)
        self._positions = np.zeros(self._room, np.int32)
        self._outputs = np.zeros(self._room, np.int8)
        self._counts = np.ones(self._room, np.int32)
        self._sequences = np.zeros(self._room, np.int32)
        self._batch = lib.llama_batch()
        self._batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def close(self) -> None:
        self._lib.llama_free(self.pointer)

    def clear(self) -> None:
        self.cached = []
        self._lib.llama_memory_clear(self._memory, False)

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """Cut the memory to what it shares with the beginning of `ids`; how many tokens that is.

        At least one token of `ids` is left to process, because the logits of the last one are wanted. Recurrent
        states cannot be cut, and a sliding window may have dropped what the cut would need: then nothing is kept.
        """
        shared = common_prefix(self.cached, ids)
        shared = min(shared, len(ids) - 1)
        del self.cached[shared:]
        if shared == 0 or not self._cut(shared):
            self.clear()
        return len(self.cached)

    def _cut(self, length: int) -> bool:
        first: int = self._lib.llama_memory_seq_pos_min(self._memory, 0)
        if first < 0 or (first > 0 and first > length - self._n_swa):
            return False
        return bool(self._lib.llama_memory_seq_rm(self._memory, 0, length, -1))

    def feed(self, ids: Sequence[int]) -> None:
        """Process `ids` after the cached tokens; llama.cpp then has the logits of the last one.

        Ctrl-C in between raises KeyboardInterrupt and leaves the context usable.
        """
        for start in range(0, len(ids), self._room):
            part = ids[start : start + self._room]
            self._outputs[: len(part)] = 0
            self._outputs[len(part) - 1] = start + len(part) == len(ids)
            self._decode(part)

    def passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, *, reuse: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after every token of `ids` but the first `skip`: llama.cpp's own memory.

        at_a_time: how many tokens pass the model together, at most and by default OUTPUT_BATCH. The cache is empty
        before, or, with `reuse`, keeps what it shares with the tokens that are skipped.
        """
        at_a_time = min(OUTPUT_BATCH, max(1, at_a_time or OUTPUT_BATCH))
        if not reuse:
            self.clear()
        for start in range(self.keep_prefix(ids[: skip + 1]) if reuse else 0, skip, self._room):
            part = ids[start : min(start + self._room, skip)]
            self._outputs[: len(part)] = 0
            self._decode(part)
        for start in range(skip, len(ids), at_a_time):
            part = ids[start : start + at_a_time]
            self._outputs[: len(part)] = 1
            self._decode(part)
            yield self._rows(len(part))

    def branches(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        """Logits that predict the tokens of each continuation of `prefix`, which pass together as room allows.

        Every continuation has fewer tokens than OUTPUT_BATCH, and there is a branch for one at least.
        """
        self.feed(prefix[self.keep_prefix(prefix) :])
        first = self._rows(1).copy()
        for group in self._groups(continuations, self.n_context - len(prefix)):
            begin = 0
            if any(len(continuation) > 1 for continuation in group):
                self._decode_branches([continuation[:-1] for continuation in group])
            for continuation in group:
                end = begin + len(continuation) - 1
                yield np.concatenate([first, self._rows(end)[begin:]]) if end > begin else first
                begin = end

    def _groups(self, continuations: Sequence[Sequence[int]], room: int) -> Iterator[list[Sequence[int]]]:
        """Those that one batch takes."""
        group: list[Sequence[int]] = []
        used = 0
        for continuation in continuations:
            count = len(continuation) - 1
            if group and (len(group) == self.n_branches or used + count > min(OUTPUT_BATCH, self._room, room)):
                yield group
                group, used = [], 0
            group.append(continuation)
            used += count
        if group:
            yield group

    def _decode_branches(self, parts: Sequence[Sequence[int]]) -> None:
        """Process each part behind the cached tokens, in a sequence of its own that is gone afterwards."""
        count = 0
        try:
            for branch, part in enumerate(parts, 1):
                self._lib.llama_memory_seq_cp(self._memory, 0, branch, -1, -1)
                end = count + len(part)
                self._tokens[count:end] = part
                self._positions[count:end] = range(len(self.cached), len(self.cached) + len(part))
                self._sequences[count:end] = branch
                count = end
            self._outputs[:count] = 1
            addresses = (self._sequences.ctypes.data + self._sequences.itemsize * np.arange(count)).astype(np.uintp)
            self._batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            self._batch.seq_id = addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
            self._run(count)
        finally:
            self._batch.n_seq_id = self._batch.seq_id = None
            for branch in range(1, 1 + len(parts)):
                self._lib.llama_memory_seq_rm(self._memory, branch, -1, -1)

    def _rows(self, count: int) -> NDArray[np.float32]:
        """The logits of the latest batch, of which so many were wanted: llama.cpp's own memory."""
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self.pointer), (count, self.n_vocab))

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The states after the last layer for every token of `ids`, float32 [n_tokens, n_embd], from an empty cache."""
        self.clear()
        result = np.empty((len(ids), self.n_embd), np.float32)
        at_a_time = self._room if self.is_encoder else OUTPUT_BATCH
        self._lib.llama_set_embeddings(self.pointer, True)
        try:
            for start in range(0, len(ids), at_a_time):
                part = ids[start : start + at_a_time]
                self._outputs[: len(part)] = 1
                self._decode(part)
                rows = self._lib.llama_get_embeddings(self.pointer)
                result[start : start + len(part)] = np.ctypeslib.as_array(rows, (len(part), self.n_embd))
        finally:
            self._lib.llama_set_embeddings(self.pointer, False)
        self.clear()
        return result

    def step(self, token: int) -> None:
        """Process one generated token."""
        self._tokens[0] = token
        self._positions[0] = len(self.cached)
        self._outputs[0] = 1
        self._batch.n_tokens = 1
        self._check(self._lib.llama_decode(self.pointer, self._batch))
        self.cached.append(token)

    def _decode(self, part: Sequence[int]) -> None:
        count = len(part)
        self._tokens[:count] = part
        self._positions[:count] = range(len(self.cached), len(self.cached) + count)
        self._run(count)
        self.cached.extend(part)

    def _run(self, count: int) -> None:
        """Process what the batch holds."""
        self._batch.n_tokens = count
        if count < _WATCHED_BATCH:
            self._check(self._lib.llama_decode(self.pointer, self._batch))
        else:
            with deferred_interrupt(self._flag):
                self._lib.llama_set_abort_callback(self.pointer, self._abort, None)
                code = self._lib.llama_decode(self.pointer, self._batch)
                self._lib.llama_set_abort_callback(self.pointer, self._no_abort, None)
            self._check(code)

    def _check(self, code: int) -> None:
        if code == 0:
            return
        if code == _ABORTED:
            raise KeyboardInterrupt
        self.clear()
        raise EngineError(f"llama.cpp could not process the tokens (code {code}): {_llama_log.last_errors()}")
