"""The llama.cpp adapter on the packaged SmolLM2 and on tiny models."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import runtimes
from llmkit.errors import DependencyError, EngineError, FormatError, LlmkitError, TemplateError
from llmkit.protocols import Message, SamplingOptions
from llmkit.runtimes.llamacpp import LlamaCppSession, _KnownText, load
from tests.chat_templates import conversation
from tests.runtimes import tiny_gguf

GREEDY = SamplingOptions(temperature=0, max_tokens=24)
STORY = "Once upon a time, in a small village by the sea, there lived"
EMOJI = "🎉🎊🎉🎊🎉🎊🎉🎊"


@pytest.fixture(scope="module")
def session(smollm2_gguf: Path) -> Iterator[LlamaCppSession]:
    # One thread: threads that wait for each other are slow where other tests run at the same time.
    with load(smollm2_gguf, n_context=512, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[LlamaCppSession]:
    path = tiny_gguf.write_llama(tiny_folder / "llama.gguf", templates={"": tiny_gguf.TEMPLATE})
    with load(path, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def mamba(tiny_folder: Path) -> Iterator[LlamaCppSession]:
    with load(tiny_gguf.write_mamba(tiny_folder / "mamba.gguf"), n_threads=1) as opened:
        yield opened


def text_of(session: LlamaCppSession, prompt: str, options: SamplingOptions = GREEDY, **changes: object) -> str:
    return "".join(session.generate(prompt, replace(options, **changes)))  # type: ignore[arg-type]


# --- what a model is


def test_info(session: LlamaCppSession, smollm2_gguf: Path) -> None:
    info = session.info
    assert (info.name, info.architecture) == (smollm2_gguf.stem, "llama")
    assert info.n_params == 134_515_008
    assert (info.n_vocab, info.n_context, info.n_threads) == (49152, 512, 1)
    assert info.engine.startswith("llama.cpp (llama-cpp-python 0.3.")
    assert info.load_seconds > 0
    assert info.extra["trained_context"] == "8192"


def test_default_context_is_bounded(smollm2_gguf: Path, tiny: LlamaCppSession) -> None:
    with runtimes.load(smollm2_gguf) as opened:
        assert opened.info.n_context == 4096
        assert opened.info.n_threads >= 1
    assert tiny.info.n_context == tiny_gguf.N_CONTEXT


def test_loading_prints_nothing(smollm2_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load(smollm2_gguf, n_context=256, n_threads=1) as opened:
        text_of(opened, "Hello", max_tokens=2)
    assert capfd.readouterr() == ("", "")


# --- tokens


def test_special_tokens_count_only_when_asked(session: LlamaCppSession) -> None:
    marker = "<|im_start|>"
    assert session.tokenize(marker, parse_special=True) == [1]
    plain = session.tokenize(marker)
    assert len(plain) > 1
    assert 1 not in plain
    assert session.detokenize([1]) == marker
    assert session.detokenize(plain) == marker


def test_tokens_equal_those_of_tokenizers(session: LlamaCppSession, smollm2_checkpoint: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    for text in ("Hello world", "  two  spaces\n\n", "12345", "naïve 漢字 🎉🏳️‍🌈", "def f(x):\n\treturn x**2", ""):
        assert session.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids


# U+2581 stands for a space in SentencePiece vocabularies.
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60))
def test_text_survives_tokens(tiny: LlamaCppSession, text: str) -> None:
    assert tiny.detokenize(tiny.tokenize(text)) == text


def test_bos_is_added_where_the_model_asks_and_never_twice(tiny: LlamaCppSession, session: LlamaCppSession) -> None:
    assert tiny.tokenize("a", add_special=True) == [1, *tiny.tokenize("a")]
    assert tiny.tokenize("a") == [259, 3 + ord("a")]
    for prompt, n_prompt in (("a", 3), ("<s>a", 3), ("<s><s>a", 4)):
        text_of(tiny, prompt, max_tokens=1)
        assert tiny.stats.n_prompt == n_prompt
    assert session.tokenize("a", add_special=True) == session.tokenize("a")


def test_text_that_is_not_unicode_does_no_harm(session: LlamaCppSession) -> None:
    assert session.detokenize(session.tokenize("a\ud800b")) == "a?b"


# --- logits


def test_logits_equal_those_of_single_steps(tiny: LlamaCppSession, mamba: LlamaCppSession) -> None:
    ids = [3 + byte for byte in b"The quick brown fox jumps over the lazy dog."] * 2
    for model, tolerance in ((tiny, 0.1), (mamba, 1e-3)):  # attention on the CPU adds up single steps in float16
        together = model.logits(ids)
        assert together.shape == (len(ids), model.info.n_vocab)
        assert together.dtype == np.float32
        assert together.std() > 1
        context = model._context
        context.clear()
        for position, token in enumerate(ids):
            context.step(token)
            rows = model._lib.llama_get_logits(context.pointer)
            row = np.ctypeslib.as_array(rows, (1, model.info.n_vocab))[0]
            np.testing.assert_allclose(row, together[position], atol=tolerance)


def test_logits_do_not_depend_on_what_came_before(session: LlamaCppSession) -> None:
    ids = session.tokenize(STORY)
    first = session.logits(ids)
    text_of(session, "Something else", max_tokens=3)
    np.testing.assert_array_equal(session.logits(ids), first)


def test_logits_of_many_batches(session: LlamaCppSession) -> None:
    ids = (session.tokenize(STORY) * 40)[:160]
    logits = session.logits(ids)
    assert np.isfinite(logits).all()
    # A causal model: what follows cannot change the rows of the first batch.
    np.testing.assert_array_equal(session.logits(ids[:128]), logits[:128])
    np.testing.assert_allclose(session.logits(ids[:150])[140], logits[140], atol=1e-3)


@pytest.mark.slow
def test_logits_equal_those_of_transformers(session: LlamaCppSession, smollm2_gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = session.tokenize(STORY)
    model = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    found = torch.log_softmax(torch.from_numpy(session.logits(ids)).double(), -1)
    divergence = (expected.exp() * (expected - found)).sum(-1)
    assert divergence.mean() < 0.02  # llama.cpp rounds activations to 8 bits for this file


def test_greedy_tokens_have_the_highest_logits(session: LlamaCppSession) -> None:
    prompt = session.tokenize("The capital of France is")
    list(session.generate(prompt, GREEDY))
    ids = session._context.cached
    assert ids[: len(prompt)] == prompt
    generated = ids[len(prompt) :]
    assert len(generated) == GREEDY.max_tokens - 1  # type: ignore[operator]  # the last one is not processed
    logits = session.logits(ids)[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(generated)), generated]
    # Batched and single steps round differently, by about 0.2 for this file: allow for near ties.
    assert (logits.max(axis=1) - chosen).max() < 1.5
    assert (logits.argmax(axis=1) == generated).mean() > 0.7


# --- generation


def test_greedy_generation(session: LlamaCppSession) -> None:
    text = text_of(session, "The capital of France is", max_tokens=2)
    assert text == " Paris."
    assert session.stats.stop_reason == "length"
    assert session.stats.n_generated == 2


def test_same_seed_same_text(session: LlamaCppSession) -> None:
    hot = SamplingOptions(temperature=1.2, max_tokens=16)
    texts = []
    for seed in (1, 2, 3, 1):
        session.logits([5])  # what the cache holds decides how the prompt is batched, and so how it is rounded
        texts.append(text_of(session, STORY, hot, seed=seed))
    assert texts[0] == texts[3]
    assert len(set(texts)) > 1
    unseeded = {text_of(session, STORY, hot) for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize(
    "filters",
    [{"top_k": 1}, {"top_k": 0, "top_p": 1e-6}, {"top_k": 0, "top_p": 1.0, "min_p": 1.0}],
    ids=["top-k", "top-p", "min-p"],
)
def test_each_filter_alone_can_leave_only_the_best_token(session: LlamaCppSession, filters: dict[str, float]) -> None:
    best = text_of(session, STORY)
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 2.0, "seed": 3}
    assert text_of(session, STORY, **{**off, **filters}) == best
    assert text_of(session, STORY, **off) != best


def test_repeat_penalty_counts_the_prompt_but_not_its_special_tokens(session: LlamaCppSession) -> None:
    prompt = "one two three one two three one two three one two"
    assert text_of(session, prompt, max_tokens=1) == " three"
    assert text_of(session, prompt, max_tokens=1, repeat_penalty=1e6) not in (" one", " two", " three")
    assert text_of(session, prompt, max_tokens=1, repeat_penalty=1e6, repeat_last_n=0) == " three"
    # The end of an answer has to stay as likely as it was.
    messages = conversation("Say only: yes")
    answer = "".join(session.chat(messages, replace(GREEDY, max_tokens=200, repeat_penalty=1.1)))
    assert session.stats.stop_reason == "end", answer


def test_stop_strings_never_appear(session: LlamaCppSession) -> None:
    full = text_of(session, STORY, max_tokens=40)
    for start in (3, 10, 17, 30):
        stop = full[start : start + 9]
        text = text_of(session, STORY, max_tokens=40, stop=("never in the text", stop))
        assert text == full[: full.index(stop)]
        assert session.stats.stop_reason == "stop"
    almost = full[5:9] + "\x00"
    assert text_of(session, STORY, max_tokens=40, stop=(almost,)) == full


def test_characters_arrive_whole(session: LlamaCppSession) -> None:
    assert len(session.tokenize(EMOJI)) > len(EMOJI)
    pieces = list(session.generate(EMOJI, GREEDY))
    assert len(pieces) < session.stats.n_generated  # some tokens complete no character
    assert any(ord(piece[0]) > 0x1F000 for piece in pieces)
    assert "\ufffd" not in "".join(pieces)
    for count in (1, 2, 3):  # ends within a character
        assert "\ufffd" not in text_of(session, EMOJI, max_tokens=count)


def test_no_tokens_wanted(session: LlamaCppSession) -> None:
    assert list(session.generate(STORY, replace(GREEDY, max_tokens=0))) == []
    assert session.stats.n_generated == 0
    assert session.stats.stop_reason == "length"


def test_empty_prompt(session: LlamaCppSession) -> None:
    text_of(session, "", max_tokens=1)  # begins at BOS
    assert session.stats.n_prompt == 1
    with pytest.raises(EngineError, match="no tokens"):
        session.generate([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: expected 0 or more"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"seed": 2**32}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    session: LlamaCppSession, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        session.generate("x", SamplingOptions(**changes))  # type: ignore[arg-type]


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


# --- chat


def test_chat_uses_the_models_template(session: LlamaCppSession) -> None:
    "".join(session.chat(conversation("hi", system="S"), replace(GREEDY, max_tokens=1)))
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert session._known.text.startswith(prompt)
    assert session.stats.n_prompt == len(session.tokenize(prompt, parse_special=True))


def test_choice_and_lack_of_templates(tiny_folder: Path) -> None:
    say = "{{{{ '{}' }}}}"
    several = tiny_gguf.write_llama(
        tiny_folder / "several.gguf", templates={"": say.format("AB"), "tool_use": say.format("ABC")}
    )
    own = tiny_folder / "own.jinja"
    own.write_text("ABCD")
    messages: list[Message] = [{"role": "user", "content": "x"}]
    for template, n_letters in ((None, 2), ("tool_use", 3), (str(own), 4)):
        with load(several, template=template, n_threads=1) as opened:
            list(opened.chat(messages, replace(GREEDY, max_tokens=1)))
            assert opened.stats.n_prompt == n_letters + 2  # BOS and the first space
    with (
        load(several, template="nosuch", n_threads=1) as opened,
        pytest.raises(TemplateError, match="it has 'default', 'tool_use'"),
    ):
        opened.chat(messages)
    without = tiny_gguf.write_llama(tiny_folder / "without.gguf")
    with load(without, n_threads=1) as opened, pytest.raises(TemplateError, match="has no chat template"):
        opened.chat(messages)


def test_template_that_refuses(tiny_folder: Path) -> None:
    source = "{{ raise_exception('no system messages here') }}"
    path = tiny_gguf.write_llama(tiny_folder / "refuses.gguf", templates={"": source})
    with load(path, n_threads=1) as opened, pytest.raises(TemplateError, match="no system messages here"):
        opened.chat(conversation("x"))


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


def test_folder_is_sent_to_convert(tmp_path: Path) -> None:
    with pytest.raises(LlmkitError, match=f"llmkit convert {tmp_path} --to gguf-q4"):
        runtimes.load(tmp_path)
