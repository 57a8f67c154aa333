"""Bundles for LiteRT-LM, run by it."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

import llmkit
from tests.convert.frameworks.reference import CONTEXT, reference, require

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
TEXT = "The capital of France is"


def test_a_bundle(tmp_path: Path) -> None:
    """The tokens that transformers takes, and a chat by a template that adds texts up."""
    require("litertlm")
    litert_lm = pytest.importorskip("litert_lm")
    source = copytree(reference("llama").folder, tmp_path / "source")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    folder = llmkit.convert(source, "litertlm", output=tmp_path / "m", context=CONTEXT, threads=2).path
    assert {"model.litertlm", "llmkit.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not {"model.tflite", "metadata.pb", "weights.safetensors"} & {path.name for path in folder.iterdir()}
    with litert_lm.Engine(str(folder / "model.litertlm"), cache_dir=str(tmp_path)) as engine:
        ids = engine.tokenize(TEXT)
        sampler = litert_lm.SamplerConfig(top_k=1)
        with engine.create_session(apply_prompt_template=False, max_output_tokens=8, sampler_config=sampler) as session:
            session.run_prefill([TEXT])
            (found,) = session.run_decode().texts
        assert found == engine.detokenize(greedy(source, [engine.bos_token_id, *ids], 8))
        with engine.create_conversation() as conversation:
            assert conversation.send_message("Why?")["content"]


def greedy(source: Path, ids: list[int], n: int) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source)
    with torch.inference_mode():
        found = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False, eos_token_id=None)
    return [int(id) for id in found[0][len(ids) :]]


@pytest.mark.parametrize(
    ("processor", "config", "adds"),
    [
        (None, {}, False),
        (None, {"add_bos_token": True}, True),
        ("<s>", {}, True),
        ("</s>", {}, False),
    ],
)
def test_whether_a_tokenizer_adds_the_first_token(processor: str | None, config: dict[str, Any], adds: bool) -> None:
    from llmkit.convert.frameworks.litertlm import _adds

    one = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": processor}}, {"Sequence": {"id": "A"}}]}
    one["special_tokens"] = {"<s>": {"ids": [1]}, "</s>": {"ids": [2]}}
    for made in (one, {"type": "Sequence", "processors": [{"type": "ByteLevel"}, one]}):
        assert _adds(config, {"post_processor": made if processor else None}, 1) is adds
