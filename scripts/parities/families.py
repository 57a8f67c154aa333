"""The table of families: what tiny model of each is compared.

A row names transformers' config class and what of it is not as in `SIZES`; transformers makes the model, random weights
are put in, and it saves the checkpoint that llmkit converts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Sizes of every model, under the names that most config classes have.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

Tensors = dict[str, Any]  # torch tensors by name


@dataclass(frozen=True)
class Row:
    """A family, or a variation of one.

    config: transformers' config class. settings: what the class does not have from `SIZES`, or has otherwise; None
    leaves a size out. auto: transformers' class that loads it. spread: standard deviation of the matrices' weights,
    chosen for logits on a range of 1 to 10 and for attention that is not uniform. tokenizer: which of `tiny`'s.
    rewrite: for families that transformers does not have, makes their tensors and config from those of one that
    computes the same.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    auto: str = "AutoModelForCausalLM"
    spread: float = 0.15
    tokenizer: str = "smollm2"
    rewrite: Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]] | None = None


FAMILIES: Final[dict[str, Row]] = {
    "llama": Row("LlamaConfig"),
    "llama, llama3 scaling": Row(
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mistral": Row("MistralConfig", {"sliding_window": None}),
}
