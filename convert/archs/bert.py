"""BERT, and the embedding models made from it: MiniLM, E5, BGE, GTE, ..."""

from __future__ import annotations

from llmkit.convert.archs import encoders
from llmkit.convert.archs.rules import Family

FAMILY = Family(
    model_type="bert",
    architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    gguf_architecture="bert",
    read_hparams=encoders.read_encoder,
    tensors=encoders.BERT_TENSORS,
    unused=encoders.UNUSED,
    prefixes=(("bert.", ""),),
    notes=encoders.notes,
    write_config=encoders.write_encoder,
    tokenizers=("bert",),
)
