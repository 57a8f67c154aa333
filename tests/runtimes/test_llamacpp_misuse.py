"""The llama.cpp adapter interrupted, misused, and given files that it cannot load."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.errors import DependencyError, EngineError, FormatError, LlmkitError
from llmkit.runtimes.llamacpp import LlamaCppSession, load
from tests.runtimes import tiny_gguf
from tests.runtimes.prompts import GREEDY, STORY, text_of

# --- interruption and misuse


def test_interrupt_between_tokens_leaves_the_session_usable(session: LlamaCppSession) -> None:
    expected = text_of(session, STORY)
    session.logits([5])
    stream = session.generate(STORY, GREEDY)
    seen = [next(stream), next(stream)]
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert session.stats.stop_reason == "interrupted"
    assert expected.startswith("".join(seen))
    session.logits([5])
    assert text_of(session, STORY) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_interrupt_within_a_long_prompt(smollm2_gguf: Path) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with load(smollm2_gguf, n_context=4096, n_threads=1) as opened:
        prompt = [5] * 4000  # many seconds of work
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(opened.generate(prompt, GREEDY))
        timer.join()
        assert len(opened._context.cached) < 2000
        assert opened.stats.stop_reason == "interrupted"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert text_of(opened, "The capital of France is", max_tokens=1) == " Paris"


def test_one_generation_at_a_time(session: LlamaCppSession) -> None:
    first = session.generate(STORY, GREEDY)
    next(first)
    assert text_of(session, "The capital of France is", max_tokens=1) == " Paris"
    with pytest.raises(EngineError, match="one generation at a time"):
        next(first)


def test_generation_that_is_dropped(session: LlamaCppSession) -> None:
    expected = text_of(session, STORY)
    for _ in session.generate(STORY, GREEDY):
        break
    gc.collect()
    assert session.stats.stop_reason == "interrupted"
    assert text_of(session, STORY) == expected


def test_ids_outside_the_vocabulary(session: LlamaCppSession) -> None:
    for ids in ([-1], [49152], [5, 10**9]):
        for use in (session.logits, session.detokenize, session.generate):
            with pytest.raises(EngineError, match="outside the vocabulary of 49152"):
                use(ids)  # type: ignore[operator]


def test_closed_session(tiny_folder: Path) -> None:
    opened = load(tiny_gguf.write_llama(tiny_folder / "closed.gguf"), n_threads=1)
    stream = opened.generate([5, 6], replace(GREEDY, max_tokens=100))
    next(stream)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        opened.tokenize("x")


def test_model_without_vocabulary(tiny_folder: Path) -> None:
    with load(tiny_gguf.write_llama(tiny_folder / "wordless.gguf", text=False), n_threads=1) as opened:
        assert opened.logits([5, 6]).shape == (2, 300)
        assert list(opened.generate([5, 6], replace(GREEDY, repeat_penalty=1.1))) == []
        assert opened.stats.n_generated == GREEDY.max_tokens
        for use in (lambda: opened.tokenize("x"), lambda: opened.detokenize([5]), lambda: opened.generate("x")):
            with pytest.raises(EngineError, match="no tokenizer"):
                use()


# --- files that cannot be loaded


def test_files_that_cannot_be_loaded(tiny_folder: Path) -> None:
    good = tiny_gguf.write_llama(tiny_folder / "good.gguf").read_bytes()
    broken = tiny_folder / "broken.gguf"
    for data in (b"", b"GGUF", b"not a model at all" * 9, good[:2000], good[:-1000]):
        broken.write_bytes(data)
        with pytest.raises(FormatError, match=r"broken\.gguf"):
            load(broken)
    with pytest.raises((LlmkitError, OSError), match=r"missing\.gguf"):
        load(tiny_folder / "missing.gguf")


def test_reason_of_the_engine_is_shown(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="unknown model architecture: 'nosucharch'"):
        load(tiny_gguf.write_unknown(tiny_folder / "unknown.gguf"))
    with pytest.raises(EngineError, match=r"key not found in model: llama\.context_length"):
        load(tiny_gguf.write_incomplete(tiny_folder / "incomplete.gguf"))
    assert capfd.readouterr() == ("", "")


def test_options_of_loading_are_checked(smollm2_gguf: Path) -> None:
    with pytest.raises(EngineError, match="n_context is 0"):
        load(smollm2_gguf, n_context=0)
    with pytest.raises(EngineError, match="n_threads is -1"):
        load(smollm2_gguf, n_threads=-1)


def test_missing_package_names_the_extra(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(DependencyError, match=r"pip install 'llmkit\[llama\]'"):
        load(smollm2_gguf)
