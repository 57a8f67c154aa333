"""Runs checkpoints as they are, in transformers: the reference that converted models are compared with.

Code that comes with a checkpoint is never run, and weights are read from SafeTensors files only.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DependencyError, EngineError, UnsupportedError
from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.checkpointfiles import CONFIG
from llmkit.formats.strictjson import read_json_object
from llmkit.protocols import SessionInfo
from llmkit.runtimes._hf_vocabulary import HfVocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._options import check_counts
from llmkit.runtimes._prefix import common_prefix
from llmkit.runtimes._session import AT_ONCE, LogitsSession

DEFAULT_CONTEXT: Final = 4096
DTYPES: Final = ("float32", "bfloat16", "float16")
_NEAR: Final = 1e-3  # of the logits' range: what rounding makes of the same computation
_POSITIONS: Final = ("wpe.weight", "position_embeddings.weight", "embed_positions.weight")
_MOST_BRANCHES: Final = 8  # continuations that pass together, each with a copy of the cache


def load(
    path: str | Path,
    *,
    n_context: int | None = None,
    n_threads: int | None = None,
    template: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> TorchSession:
    """Load the checkpoint folder at `path`.

    `n_context`: the most tokens of prompt and answer; by default what the model was trained for, at most 4096.
    `n_threads`: torch's, for the whole process; by default the physical cores this process may use. `template`: which
    chat template to use, as `llmkit.template.choose_template` explains. `dtype`: float32, bfloat16 or float16.
    `device`: torch's name of one.

    Raises UnsupportedError for a folder that is no checkpoint, EngineError if transformers cannot load it,
    DependencyError if torch or transformers is not installed.
    """
    folder = Path(path)
    check_counts(n_context=n_context, n_threads=n_threads)
    if dtype not in DTYPES:
        raise EngineError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if not (folder / CONFIG).is_file():
        raise UnsupportedError(
            f"{folder} is a folder without {CONFIG}: models run from GGUF files, ONNX folders and checkpoints"
        )
    started = time.perf_counter()
    torch, transformers = _bindings()
    n_threads = n_threads or default_threads()
    torch.set_num_threads(n_threads)
    model = _load_model(torch, transformers, folder, dtype, device)
    settings = model.config.get_text_config()
    trained = int(getattr(settings, "max_position_embeddings", None) or DEFAULT_CONTEXT)
    n_context = n_context or min(trained, DEFAULT_CONTEXT)
    if n_context > trained and any(name.endswith(_POSITIONS) for name, _ in model.named_parameters()):
        raise EngineError(
            f"{folder}: has embeddings for {trained} positions: a context of {n_context} is too large (--context, "
            "n_context)"
        )
    n_vocab = int(settings.vocab_size)
    vocabulary = HfVocabulary(folder, n_tokens=n_vocab, ends=_ends(folder, settings))
    templates = read_chat_templates(folder, vocabulary.config)
    info = SessionInfo(
        name=folder.resolve().name,
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
        architecture=str(model.config.model_type),
        n_params=sum(parameter.numel() for parameter in model.parameters()),
        n_vocab=n_vocab,
        n_context=n_context,
        n_threads=n_threads,
        load_seconds=time.perf_counter() - started,
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        extra={
            "path": str(path),
            "trained_context": str(trained),
            "templates": ", ".join(templates),
            "device": device,
            "dtype": dtype,
        },
    )
    context = _Context(torch, model, n_context, n_vocab)
    return TorchSession(vocabulary, context, info, templates=templates, template=template)


class TorchSession(LogitsSession):
    """A checkpoint in transformers; implements `llmkit.protocols.Session`. `load` makes one."""

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The states after the last layer (and its norm) for every token, float32 [n_tokens, n_embd]."""
        self._check_open()
        self._begin(ids)
        assert isinstance(self._context, _Context)
        return self._context.hidden_states(ids)

    def _continued(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        assert isinstance(self._context, _Context)
        found = self._context.branches(prefix, continuations)
        return super()._continued(prefix, continuations) if found is None else found

    def embed(self, text: str | Sequence[int], *, normalize: bool = True) -> NDArray[np.float32]:
        """Decoders have no pooling of their own here: raises EngineError."""
        raise EngineError(f"{self._info.extra['path']} is a decoder: for embeddings convert an embedding model to GGUF")


class _Context:
    """transformers' cache, the tokens that it holds, and the logits after the last of them."""

    def __init__(self, torch: Any, model: Any, n_context: int, n_vocab: int) -> None:
        self._torch = torch
        self._model = model
        self._n_vocab = n_vocab
        self._cache: Any = None
        # transformers 5.24 has one name for all; before, models without attention had another one.
        names = signature(model.forward).parameters
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in names), "cache_params")
        self._continues: bool | None = None
        self.n_context = n_context
        self.cached: list[int] = []
        self._latest: NDArray[np.float32] = np.empty(0, np.float32)

    @property
    def is_open(self) -> bool:
        return self._model is not None

    def close(self) -> None:
        self._model = self._cache = None

    def latest(self) -> NDArray[np.float32]:
        return self._latest

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """States of a recurrence or of a sliding window cannot be cut: then nothing is kept."""
        shared = min(common_prefix(self.cached, ids), len(ids) - 1)
        if shared < len(self.cached):
            if shared == 0 or not self._is_whole():
                self._clear()
            else:
                self._cache.crop(shared - len(self.cached))  # how many to remove, below zero
                del self.cached[shared:]
        return len(self.cached)

    def _is_whole(self) -> bool:
        """Whether all that the cache holds are keys and values of every token."""
        layers = getattr(self._cache, "layers", None) or ()
        return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)

    def feed(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), AT_ONCE):
            self._pass(ids[start : start + AT_ONCE])

    def step(self, token: int) -> None:
        self._pass([token])

    def passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, *, reuse: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        if not reuse:
            self._clear()
        self.feed(ids[self.keep_prefix(ids[: skip + 1]) if reuse else 0 : skip])
        step = min(AT_ONCE, max(1, at_a_time or AT_ONCE))
        for start in range(skip, len(ids), step):
            yield self._pass(ids[start : start + step])

    def branches(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]] | None:
        """Logits that predict the tokens of each continuation, several of which pass together.

        None for a model whose cache holds other things than keys and values of all tokens: of these several cannot
        begin with the same one.
        """
        self.feed(prefix[self.keep_prefix(prefix) :])
        return self._branches(continuations) if self._is_whole() else None

    def _branches(self, continuations: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        first = self._latest[np.newaxis]
        longest = max(map(len, continuations), default=0)
        at_once = max(1, min(_MOST_BRANCHES, AT_ONCE // max(1, longest)))
        for start in range(0, len(continuations), at_once):
            group = continuations[start : start + at_once]
            width = max(map(len, group)) - 1
            # Nothing looks at what fills the rows behind their ends.
            rows = [[*ids[:-1], *[ids[-1]] * (width + 1 - len(ids))] for ids in group]
            logits = self._side_by_side(rows) if width else np.empty((len(group), 0, self._n_vocab), np.float32)
            for ids, found in zip(group, logits, strict=True):
                yield np.concatenate([first, found[: len(ids) - 1]])

    def _side_by_side(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """Logits of rows of tokens that all follow the cached ones, which stay as they are: [rows, tokens, n_vocab]."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(rows))
        with self._torch.inference_mode():
            tokens = self._torch.tensor(rows, device=self._model.device)
            found = self._model(tokens, use_cache=True, **{self._cache_name: cache})
        logits: NDArray[np.float32] = found.logits.float().cpu().numpy()
        return logits

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._clear()
        with self._torch.inference_mode():
            found = self._model(self._tensor(ids), output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        states: NDArray[np.float32] = found.float().cpu().numpy()
        return states

    def _clear(self) -> None:
        self.cached.clear()
        self._cache = None

    def _tensor(self, ids: Sequence[int]) -> Any:
        return self._torch.tensor([list(ids)], device=self._model.device)

    def _pass(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Process further tokens; their logits, float32 [n, n_vocab]."""
        try:
            if self.cached and len(ids) > 1 and not self._takes_several():
                parts = [self._forward([token], self._cache) for token in ids]
            else:
                parts = [self._forward(ids, self._cache)]
            rows = parts[0][0] if len(parts) == 1 else np.concatenate([part for part, _ in parts])
            self._cache = parts[-1][1]
            self._latest = rows[-1].copy()  # or it would keep all of them
            self.cached += ids
        except BaseException:  # some layers may have grown, and others not
            self._clear()
            raise
        return rows

    def _forward(self, ids: Sequence[int], cache: Any) -> tuple[NDArray[np.float32], Any]:
        """Logits of tokens behind those in a cache, and the cache with them."""
        with self._torch.inference_mode():
            found = self._model(self._tensor(ids), use_cache=True, **{self._cache_name: cache})
        return found.logits[0].float().cpu().numpy(), getattr(found, self._cache_name)

    def _takes_several(self) -> bool:
        """Whether several tokens at once may follow those in the cache.

        Not so in transformers' Mamba, which takes them for the first ones; so where there are states, it is tried.
        """
        if self._continues is None:
            layers = getattr(self._cache, "layers", ())
            self._continues = True
            if not all(type(layer).__name__.startswith("Dynamic") for layer in layers):
                first = self.cached[:4] * 2
                expected, _ = self._forward([*first, *first], None)
                _, cache = self._forward(first, None)
                found, _ = self._forward(first, cache)
                expected = expected[len(first) :]
                self._continues = bool(np.abs(found - expected).max() < _NEAR * np.ptp(expected))
        return self._continues


def _bindings() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise DependencyError(error.name or "torch", "torch", "running a checkpoint as it is") from error
    return torch, transformers


def _load_model(torch: Any, transformers: Any, folder: Path, dtype: str, device: str) -> Any:
    bars = transformers.utils.logging
    was_shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        return model.to(device).eval()
    except Exception as error:  # of a damaged checkpoint it may be any
        raise EngineError(f"{folder}: transformers cannot load this checkpoint: {error}") from error
    finally:
        if was_shown:
            bars.enable_progress_bar()


def _ends(folder: Path, settings: Any) -> frozenset[int]:
    """The tokens that end an answer, by generation_config.json, else by config.json."""
    path = folder / "generation_config.json"
    found = read_json_object(path).get("eos_token_id") if path.is_file() else None
    found = getattr(settings, "eos_token_id", None) if found is None else found
    ids = found if isinstance(found, list) else [found]
    return frozenset(id for id in ids if isinstance(id, int))
