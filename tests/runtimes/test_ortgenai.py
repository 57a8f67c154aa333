"""SmolLM2 on ONNX Runtime GenAI: the same tokens as on llama.cpp and in transformers, and what a session promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit import runtimes
from llmkit.errors import DependencyError, EngineError, FormatError
from llmkit.protocols import Message, SamplingOptions
from llmkit.runtimes import ortgenai
from llmkit.runtimes.ortgenai import OrtSession

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=24)
STORY = "Once upon a time there was a small lighthouse"


@pytest.fixture(scope="module")
def folder(smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llmkit.convert(smollm2_checkpoint, "onnx-fp32", output=tmp_path_factory.mktemp("ort") / "smollm2").path


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[OrtSession]:
    with ortgenai.load(folder, n_context=512, n_threads=1) as opened:
        yield opened


def text_of(session: OrtSession, prompt: str, **changes: object) -> str:
    options = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=24, **changes)  # type: ignore[arg-type]
    return "".join(session.generate(prompt, options))


def test_greedy_text_is_llama_cpps(session: OrtSession, smollm2_checkpoint: Path, tmp_path: Path) -> None:
    gguf = llmkit.convert(smollm2_checkpoint, "gguf-f32", output=tmp_path / "f32.gguf").path
    messages: list[Message] = [{"role": "user", "content": "Name three colours of the rainbow."}]
    with llmkit.load(gguf, n_context=512, n_threads=1) as other:
        for prompt in (STORY, "The capital of France is"):
            assert session.tokenize(prompt) == other.tokenize(prompt)
            assert text_of(session, prompt) == "".join(other.generate(prompt, GREEDY))
        assert "".join(session.chat(messages, GREEDY)) == "".join(other.chat(messages, GREEDY))
        assert session.stats.n_prompt == other.stats.n_prompt


def test_logits_are_transformers(session: OrtSession, smollm2_checkpoint: Path) -> None:
    import torch
    import transformers

    ids = session.tokenize(STORY * 4)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(session.logits(ids) - expected).max() < 1e-3
    assert np.abs(session.logits(ids, at_a_time=1) - expected).max() < 1e-3


def test_the_cache_is_kept_across_turns(session: OrtSession) -> None:
    messages: list[Message] = [{"role": "user", "content": "Name three colours."}]
    answer = "".join(session.chat(messages, GREEDY))
    n_first = session.stats.n_prompt + session.stats.n_generated
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And a fourth?"}]
    second = "".join(session.chat(messages, GREEDY))
    assert session.stats.n_reused >= n_first - 2
    session.logits([5])
    assert "".join(session.chat(messages, GREEDY)) == second
    assert session.stats.n_reused == 0


def test_tokens_and_text(session: OrtSession) -> None:
    ids = session.tokenize("Grüße, 日本 🙂!")
    assert session.detokenize(ids) == "Grüße, 日本 🙂!"
    assert session.tokenize("<|im_start|>", parse_special=True) == [1]
    assert len(session.tokenize("<|im_start|>")) > 1
    assert "".join(session.generate(ids, SamplingOptions(temperature=0, max_tokens=0))) == ""


def test_stop_strings_and_limits(session: OrtSession) -> None:
    whole = text_of(session, STORY)
    word = whole.split()[3]
    assert text_of(session, STORY, stop=(word,)) == whole[: whole.index(word)]
    assert session.stats.stop_reason == "stop"
    with ortgenai.load(Path(session.info.extra["path"]), n_context=16, n_threads=1) as small:
        list(small.generate(STORY, SamplingOptions(temperature=0, max_tokens=50)))
        assert small.stats.stop_reason == "context"
        with pytest.raises(EngineError, match="the context holds 16"):
            small.generate(STORY * 4)


def test_misuse(session: OrtSession, folder: Path) -> None:
    with pytest.raises(EngineError, match="is outside the vocabulary"):
        session.logits([10**6])
    with pytest.raises(EngineError, match="no tokens"):
        session.logits([])
    with pytest.raises(EngineError, match="gives logits only"):
        session.embed("text")
    first = session.generate(STORY, GREEDY)
    next(first)
    session.logits([5])
    with pytest.raises(EngineError, match="one generation at a time"):
        next(first)
    closed = ortgenai.load(folder, n_threads=1)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.logits([5])


def test_devices(folder: Path) -> None:
    with ortgenai.load(folder, n_threads=1, device="auto") as opened:
        assert opened.info.extra["device"] == "cpu"
    with pytest.raises(EngineError, match=r"device cuda: this onnxruntime-genai has no CUDA.*llmkit\[ort-cuda\]"):
        ortgenai.load(folder, device="cuda")
    with pytest.raises(EngineError, match="expected one of auto, cpu, cuda"):
        ortgenai.load(folder, device="tpu")


def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_genai", None)
    with pytest.raises(DependencyError, match=r"pip install 'llmkit\[ort\]'"):
        runtimes.load(folder)


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="cannot be given text"):
        runtimes.load(copy)
