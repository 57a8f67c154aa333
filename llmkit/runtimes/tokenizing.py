"""Tokens by Hugging Face's `tokenizers` and by llama.cpp, for converters that must know whether they agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from llmkit.errors import DependencyError, EngineError
from llmkit.runtimes import _llama_log
from llmkit.runtimes._llama_model import bindings
from llmkit.runtimes._llama_vocab import Vocabulary


class LlamaCppJudge:
    """`llmkit.protocols.TokenizerJudge` with llama.cpp as the engine. Both libraries are imported at the first use."""

    def reference(self, tokenizer_json: str, texts: Sequence[str]) -> list[list[int]]:
        """See the protocol. Raises DependencyError without `tokenizers`, EngineError if it refuses the file."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DependencyError("tokenizers", "llama", "comparing tokens") from error
        try:
            tokenizer = Tokenizer.from_str(tokenizer_json)
            return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            raise EngineError(f"Hugging Face's tokenizers does not run this tokenizer: {error}") from error

    def engine(self, gguf: bytes, texts: Sequence[str]) -> list[list[int]]:
        """See the protocol. Raises DependencyError without llama-cpp-python, EngineError if it refuses the file."""
        lib = bindings()
        _llama_log.clear()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        with TemporaryDirectory(prefix="llmkit-") as folder:
            path = Path(folder, "vocabulary.gguf")
            path.write_bytes(gguf)
            model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise EngineError(f"llama.cpp cannot load this vocabulary: {_llama_log.last_errors() or 'no reason given'}")
        try:
            vocabulary = Vocabulary(lib, model)
            return [vocabulary.tokenize(text) for text in texts]
        finally:
            lib.llama_model_free(model)
