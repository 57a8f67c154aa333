"""The llama.cpp adapter at the ends of its context, and the KV cache kept between prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions
from llmkit.runtimes._session import _KnownText
from llmkit.runtimes.llamacpp import LlamaCppSession, load
from tests.chat_templates import conversation
from tests.runtimes.prompts import EMOJI, GREEDY, text_of

# --- context


def test_prompt_longer_than_the_context(session: LlamaCppSession) -> None:
    for run in (session.generate, session.logits):
        with pytest.raises(EngineError, match=r"has 513 tokens and the context holds 512.*n_context.*trained for 8192"):
            run([5] * 513)  # type: ignore[operator]
    assert text_of(session, "The capital of France is", max_tokens=1) == " Paris"


def test_generation_ends_where_the_context_does(tiny: LlamaCppSession) -> None:
    n_context = tiny.info.n_context
    for length in (n_context - 3, n_context):
        list(tiny.generate([5] * length, SamplingOptions(seed=1)))
        if tiny.stats.stop_reason != "end":
            assert tiny.stats.stop_reason == "context"
            assert tiny.stats.n_generated == n_context - length + 1
    list(tiny.generate([5] * n_context, replace(GREEDY, max_tokens=5)))
    assert tiny.stats.stop_reason == "context"


def test_context_too_large_for_the_machine(smollm2_gguf: Path) -> None:
    with pytest.raises(EngineError, match=r"2147483647 tokens needs \d+\.\d GB for the KV cache, and this machine"):
        load(smollm2_gguf, n_context=2**31 - 1)


# --- the KV cache


def test_second_turn_processes_only_what_is_new(session: LlamaCppSession) -> None:
    session.logits([5])
    messages = conversation("Name a fruit.")
    answer = "".join(session.chat(messages, GREEDY))
    first = replace(session.stats)
    assert first.n_reused == 0
    messages += [{"role": "assistant", "content": answer}, *conversation("And a colour?")]
    "".join(session.chat(messages, GREEDY))
    second = session.stats
    # The last generated token ends an answer or was not processed; everything before it is still there.
    assert second.n_reused == first.n_prompt + first.n_generated - 1
    assert second.n_prompt - second.n_reused < 20
    "".join(session.chat(messages, GREEDY))  # the same again: only the last token is needed
    assert session.stats.n_reused == session.stats.n_prompt - 1


def test_reused_cache_gives_what_a_fresh_one_gives(tiny: LlamaCppSession, mamba: LlamaCppSession) -> None:
    for model in (tiny, mamba):
        first = [3 + byte for byte in b"The quick brown fox"]
        list(model.generate(first, GREEDY))
        continued = [*model._context.cached, 5, 6]
        for prompt in (continued, [*first[:9], 7, 8, 9], first):
            list(model.generate(prompt, replace(GREEDY, max_tokens=2)))
            chosen = model._context.cached[len(prompt)]
            row = model.logits(prompt)[-1]
            assert row[chosen] > row.max() - 0.1
            list(model.generate(first, GREEDY))


def test_memory_that_cannot_be_cut_is_processed_again(mamba: LlamaCppSession) -> None:
    ids = [3 + byte for byte in b"The quick brown fox"]
    list(mamba.generate(ids, GREEDY))
    list(mamba.generate([*ids[:9], 5, 6], GREEDY))
    assert mamba.stats.n_reused == 0
    continued = [*mamba._context.cached, 5, 6]
    list(mamba.generate(continued, GREEDY))
    assert mamba.stats.n_reused == len(continued) - 2


def test_own_tokens_are_kept_where_the_tokenizer_would_choose_others(session: LlamaCppSession) -> None:
    end = "<|im_end|>"
    odd = [*session.tokenize("hel"), *session.tokenize("lo")]
    assert odd != session.tokenize("hello")
    session._known = _KnownText("hello", odd)
    assert session._text_ids("hello" + end) == [*odd, 2]
    assert session._text_ids("hello") == odd
    # A merge could cross the seam here, so the tokenizer decides.
    assert session._text_ids("hello world") == session.tokenize("hello world")
    assert session._text_ids("other") == session.tokenize("other")


def test_unreadable_end_of_an_answer_is_not_remembered(session: LlamaCppSession) -> None:
    text_of(session, EMOJI, max_tokens=1)
    assert session._known.text in ("", EMOJI + "🎉")
