"""genai_config.json: how ONNX Runtime GenAI is to run a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmkit.convert.archs import HParams
from llmkit.convert.onnx.decoder import PAST, PRESENT
from llmkit.convert.onnx.providers import Provider

MODEL: Final = "model.onnx"


def genai_config(
    model_type: str, h: HParams, token_ids: Mapping[str, int | list[int]], provider: Provider
) -> dict[str, Any]:
    """The file's content. model_type: GenAI's name of the architecture; token_ids: by bos, eos and pad."""
    ids = dict(token_ids)
    providers = [] if provider.options is None else [{provider.name: dict(provider.options)}]
    if "pad" not in ids and "eos" in ids:
        eos = ids["eos"]
        ids["pad"] = eos[0] if isinstance(eos, list) else eos
    return {
        "model": {
            **{f"{kind}_token_id": ids[kind] for kind in ("bos", "eos", "pad") if kind in ids},
            "context_length": h.n_context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
                "filename": MODEL,
                "head_size": h.head_dim,
                "hidden_size": h.n_embd,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": PAST.format("%d", "key"),
                    "past_value_names": PAST.format("%d", "value"),
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": PRESENT.format("%d", "key"),
                    "present_value_names": PRESENT.format("%d", "value"),
                },
                "num_attention_heads": h.n_heads,
                "num_hidden_layers": h.n_layers,
                "num_key_value_heads": h.n_kv_heads,
            },
            "type": model_type,
            "vocab_size": h.n_vocab,
        },
        "search": {
            "do_sample": False,
            "max_length": h.n_context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
