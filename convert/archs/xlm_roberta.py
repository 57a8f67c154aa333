"""XLM-RoBERTa, RoBERTa for a hundred languages, with a Unigram tokenizer: BGE-M3, multilingual E5, ..."""

from __future__ import annotations

from llmkit.convert.archs import roberta
from llmkit.convert.archs.rules import Family

FAMILY = Family(
    model_type="xlm-roberta",
    architectures=("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    gguf_architecture="bert",
    read_hparams=roberta.read_hparams,
    tensors=roberta.FAMILY.tensors,
    unused=roberta.FAMILY.unused,
    prefixes=roberta.FAMILY.prefixes,
    notes=roberta.FAMILY.notes,
    write_config=roberta.write_config,
    from_file=roberta.from_file,
    tokenizers=("t5",),
)
