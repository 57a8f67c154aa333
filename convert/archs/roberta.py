"""RoBERTa: BERT with other positions and byte-level BPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import encoders
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.errors import FormatError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' RobertaConfig.

    The positions up to that of padding's number are for padding.
    """
    padding = config.values.get("pad_token_id", 1)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < 2**31:
        raise FormatError(config.path, f"pad_token_id must be a token's number, found {excerpt(padding)}")
    return encoders.read_encoder(config, first_position=padding + 1)


def from_file(metadata: ConfigReader, hparams: HParams) -> HParams:
    """The hyper-parameters with the positions for padding, which follow from the number of its token."""
    key = "tokenizer.ggml.padding_token_id"
    padding = metadata.values.get(key, 1)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < hparams.n_context:
        raise metadata.unsupported(key, padding, "the positions up to that number are for padding in RoBERTa")
    return replace(hparams, first_position=padding + 1)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**encoders.write_encoder(h), "pad_token_id": h.first_position - 1}


FAMILY = Family(
    model_type="roberta",
    architectures=("RobertaModel", "RobertaForMaskedLM"),
    gguf_architecture="bert",
    read_hparams=read_hparams,
    tensors=encoders.BERT_TENSORS,
    unused=encoders.UNUSED,
    prefixes=(("roberta.", ""),),
    notes=encoders.notes,
    write_config=write_config,
    from_file=from_file,
    tokenizers=("gpt2",),
)
