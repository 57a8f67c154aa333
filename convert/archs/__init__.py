"""The model families llmkit converts: one module each, named after config.json's `model_type`."""

from __future__ import annotations

import re
from difflib import get_close_matches

from llmkit.convert.archs import (
    arcee,
    bert,
    chatglm,
    cohere,
    cohere2,
    deepseek_v2,
    deepseek_v3,
    exaone,
    exaone4,
    falcon,
    falcon_mamba,
    gemma,
    gemma2,
    gemma3,
    glm,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    granite,
    granitemoe,
    granitemoehybrid,
    granitemoeshared,
    internlm2,
    llama,
    mamba,
    mamba2,
    minicpm,
    minicpm3,
    mistral,
    mixtral,
    modernbert,
    nemotron,
    nomic_bert,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    xlm_roberta,
)
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import Experts, HParams, LacksPartError, LatentAttention, StateSpace
from llmkit.convert.archs.rope import Rope
from llmkit.convert.archs.rules import Family, Presence, Source, TensorRule
from llmkit.errors import FormatError, UnsupportedError

__all__ = [
    "FAMILIES",
    "ConfigReader",
    "Experts",
    "Family",
    "HParams",
    "LacksPartError",
    "LatentAttention",
    "Presence",
    "Rope",
    "Source",
    "StateSpace",
    "TensorRule",
    "excerpt",
    "find_family",
]

FAMILIES: tuple[Family, ...] = (
    arcee.FAMILY,
    bert.FAMILY,
    chatglm.FAMILY,
    cohere.FAMILY,
    cohere2.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    exaone.FAMILY,
    exaone4.FAMILY,
    falcon.FAMILY,
    falcon_mamba.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    glm.FAMILY,
    glm4.FAMILY,
    gpt2.FAMILY,
    gpt_bigcode.FAMILY,
    gpt_neox.FAMILY,
    gpt_oss.FAMILY,
    granite.FAMILY,
    granitemoe.FAMILY,
    granitemoehybrid.FAMILY,
    granitemoeshared.FAMILY,
    internlm2.FAMILY,
    llama.FAMILY,
    mamba.FAMILY,
    mamba2.FAMILY,
    minicpm.FAMILY,
    minicpm3.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    modernbert.FAMILY,
    nemotron.FAMILY,
    nomic_bert.FAMILY,
    olmo.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    olmoe.FAMILY,
    phi.FAMILY,
    phi3.FAMILY,
    qwen2.FAMILY,
    qwen2_moe.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    roberta.FAMILY,
    seed_oss.FAMILY,
    smollm3.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
    xlm_roberta.FAMILY,
)

_BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}


def find_family(config: ConfigReader) -> Family:
    """The family that config.json's `architectures` names.

    Raises FormatError if the entry is missing, UnsupportedError (listing the known ones) if it is not known.
    """
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FormatError(config.path, f"architectures must name the model class, found {excerpt(names)}")
    name = names[0]
    if name in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[name]
    # A slip of the pen, or a relative, whose tensors and graph are others all the same.
    stems = {_stem(known): known for known in reversed(_BY_ARCHITECTURE)}
    near = [stems[stem] for stem in get_close_matches(_stem(name), stems, n=3, cutoff=0.7)]
    hint = f"; names like it: {', '.join(near)}" if near else ""
    raise UnsupportedError(
        f"{config.path}: architecture {excerpt(name)} is not known to llmkit{hint}; "
        f"known: {', '.join(sorted(_BY_ARCHITECTURE, key=str.lower))}"
    )


def _stem(architecture: str) -> str:
    """The name without what most end in, which would make all names alike."""
    return re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", architecture).lower()
