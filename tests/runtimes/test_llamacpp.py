"""The llama.cpp adapter on the packaged SmolLM2 and on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import runtimes
from llmkit.errors import EngineError, TemplateError
from llmkit.protocols import Message, SamplingOptions
from llmkit.runtimes.llamacpp import LlamaCppSession, load
from tests.chat_templates import conversation
from tests.runtimes import tiny_gguf
from tests.runtimes.prompts import EMOJI, GREEDY, STORY, text_of

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
