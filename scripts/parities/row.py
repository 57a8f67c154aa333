"""What a row of the table of families says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from parities.rewrites import Tensors

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


Rewrite = Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """A family, or a variation of one.

    config: transformers' config class. settings: what the class does not have from `SIZES`, or has otherwise; None
    leaves a size out. A multimodal model has sizes in its `text_config`. auto: transformers' class that loads it.
    spread: standard deviation of the matrices' weights, chosen for logits on a range of 1 to 10 and for attention that
    is not uniform. tokenizer: which of `tiny`'s. rewrite: for families that transformers does not have, makes their
    tensors and config from those of one that computes the same; or makes them as they were published. encoder: it has
    no logits, hidden states are compared. prepare: changes the model before it is saved and run.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    auto: str = "AutoModelForCausalLM"
    spread: float = 0.15
    tokenizer: str = "smollm2"
    rewrite: Rewrite | None = None
    encoder: bool = False
    prepare: Callable[[Any], None] | None = None
