"""RoBERTa: BERT with other positions and byte-level BPE."""

from __future__ import annotations

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


FAMILY = Family(
    model_type="roberta",
    architectures=("RobertaModel", "RobertaForMaskedLM"),
    gguf_architecture="bert",
    read_hparams=read_hparams,
    tensors=encoders.BERT_TENSORS,
    unused=encoders.UNUSED,
    prefixes=(("roberta.", ""),),
    notes=encoders.notes,
)
