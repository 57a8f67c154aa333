"""Checkpoints in transformers: the reference behind the same interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit import runtimes
from llmkit.errors import DependencyError, EngineError, UnsupportedError
from llmkit.protocols import Message, SamplingOptions
from llmkit.runtimes import torchlm
from llmkit.runtimes.torchlm import TorchSession
from tests.tinymodels import TinyLlama

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=16)
STORY = "Once upon a time there was a small lighthouse"


@pytest.fixture(scope="module")
def session(smollm2_checkpoint: Path) -> Iterator[TorchSession]:
    with torchlm.load(smollm2_checkpoint, n_context=256, n_threads=1) as opened:
        yield opened


def test_logits_are_transformers_own(session: TorchSession, smollm2_checkpoint: Path) -> None:
    import torch
    import transformers

    ids = session.tokenize(STORY * 3)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        found = model(torch.tensor([ids]), output_hidden_states=True)
    assert np.abs(session.logits(ids) - found.logits[0].numpy()).max() < 1e-3
    assert np.abs(session.logits(ids, at_a_time=1) - found.logits[0].numpy()).max() < 1e-3
    assert np.abs(session.hidden_states(ids) - found.hidden_states[-1][0].numpy()).max() < 1e-3


def test_greedy_text_is_that_of_transformers_generate(session: TorchSession, smollm2_checkpoint: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32)
    ids = tokenizer(STORY, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "".join(session.generate(STORY, GREEDY)) == tokenizer.decode(answer)


def test_the_cache_is_kept_across_turns(session: TorchSession) -> None:
    messages: list[Message] = [{"role": "user", "content": "Name three colours."}]
    answer = "".join(session.chat(messages, GREEDY))
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And a fourth?"}]
    second = "".join(session.chat(messages, GREEDY))
    assert session.stats.n_reused > 30
    session.logits([5])
    assert "".join(session.chat(messages, GREEDY)) == second


def test_a_prompt_that_goes_another_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = TinyLlama(dtype="F32").write(tmp_path / "m")
    with llmkit.load(folder, n_threads=1) as session:
        expected = list(session.generate([5, 6, 7, 20, 21], GREEDY))
        list(session.generate([5, 6, 7, 8, 9, 10], GREEDY))
        assert session.stats.n_reused == 3
        assert list(session.generate([5, 6, 7, 20, 21], GREEDY)) == expected
    assert "Loading weights" not in capfd.readouterr().err


def test_what_it_says_of_itself(session: TorchSession) -> None:
    assert session.info.architecture == "llama"
    assert session.info.n_params == 134_515_008
    assert session.info.engine.startswith("transformers 5")
    assert session.info.extra["dtype"] == "float32"


def test_a_sliding_window_cannot_be_cut(tmp_path: Path) -> None:
    folder = TinyLlama(config={"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8})
    with llmkit.load(folder.write(tmp_path / "m"), n_threads=1) as session:
        ids = list(range(5, 45))
        first = list(session.generate(ids, GREEDY))
        list(session.generate([*ids[:20], 7, 8], GREEDY))
        assert session.stats.n_reused == 0
        assert list(session.generate(ids, GREEDY)) == first


def test_load_takes_what_is_made_to_be_run_first(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "m")
    with llmkit.load(folder, n_threads=1) as session:
        assert session.info.engine.startswith("transformers")
    llmkit.convert(folder, "gguf-f32", output=folder / "m.gguf")
    with llmkit.load(folder, n_threads=1) as session:
        assert session.info.engine.startswith("llama.cpp")


def test_misuse(session: TorchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="is a decoder"):
        session.embed("text")
    with pytest.raises(EngineError, match="outside the vocabulary"):
        session.logits([10**6])
    with pytest.raises(UnsupportedError, match=r"folder without config\.json"):
        runtimes.load(tmp_path)
    folder = TinyLlama().write(tmp_path / "m")
    with pytest.raises(EngineError, match="expected one of float32, bfloat16, float16"):
        torchlm.load(folder, dtype="int8")
    closed = torchlm.load(folder, n_threads=1)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.logits([5])
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match="transformers cannot load this checkpoint"):
        torchlm.load(folder)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DependencyError, match=r"pip install 'llmkit\[torch\]'"):
        torchlm.load(folder)
