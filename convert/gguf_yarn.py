"""YaRN in GGUF keys, so that llama.cpp computes what transformers does (`_compute_yarn_parameters`).

YaRN slows long wavelengths down by `factor`, keeps short ones and blends those between, a range that two betas give;
and it multiplies the rotated queries and keys by an attention factor. llama.cpp's loader reads the factor and the
trained context for every architecture (src/llama-model.cpp), the betas for few. Its context (src/llama-context.cpp)
computes the attention factor from them and multiplies it by `rope.scaling.attn_factor`, again for every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llmkit.convert.archs import Rope, excerpt
from llmkit.convert.rotary import LARGEST_FACTOR, bounded, growth, yarn_attention
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, f32, string, u32

# Architectures that read the betas (their load_arch_hparams); all others compute with these.
_READ_BETAS: Final = ("mistral3",)
_BETAS: Final = {"beta_fast": 32.0, "beta_slow": 1.0}

# Architectures that read yarn_log_multiplier, `m` below: with it the context takes 1 + 0.1 ln(factor) for the attention
# factor's numerator and 1 + 0.1 m ln(factor) for its denominator.
_READ_MULTIPLIER: Final = ("mistral3",)

# Its context takes the denominator for the numerator too, and its graph scales attention by the square of
# attn_factor (1 + 0.1 m ln(factor)); the file holds m / 10.
_LATENT: Final = ("deepseek2",)


def yarn_keys(architecture: str, rope: Rope, n_context: int, notes: list[str]) -> dict[str, Value]:
    """The keys, without the architecture in front; adds to `notes` what differs little.

    Raises FormatError for settings that make no sense, UnsupportedError for what this architecture's graph does not
    compute.
    """
    original = rope.number("original_max_position_embeddings", n_context)
    factor = rope.number("factor", n_context / original)
    if factor < 1 or not 1 <= original < 2**31:
        raise FormatError(
            rope.path,
            f"rope scaling 'yarn': factor {factor:g} and original_max_position_embeddings {original:g} must be at "
            "least 1",
        )
    _refuse_what_is_not_computed(architecture, rope)
    if rope.parameters.get("truncate") is False:
        notes.append(
            "rope scaling 'yarn' with truncate false: llama.cpp rounds the ends of the range of blended wavelengths to "
            "whole dimensions"
        )
    keys = {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(factor),
        "rope.scaling.original_context_length": u32(int(original)),
    }
    for name in _BETAS:
        if rope.parameters.get(name) is not None:
            keys[f"rope.scaling.yarn_{name}"] = f32(rope.number(name))
    return keys | _attention_keys(architecture, rope, factor)


def _attention_keys(architecture: str, rope: Rope, factor: float) -> dict[str, Value]:
    """The keys that say what multiplies the rotated queries and keys, and what scales attention."""
    if architecture in _LATENT:
        return _latent_factors(rope, factor)
    computed = growth(factor, 1.0)
    keys = {}
    if architecture in _READ_MULTIPLIER and rope.parameters.get("mscale_all_dim"):
        multiplier = bounded(rope, "mscale_all_dim")
        keys["rope.scaling.yarn_log_multiplier"] = f32(multiplier)
        computed /= growth(factor, multiplier)
    return keys | _attention_factor(yarn_attention(rope, factor) / computed)


def yarn_parameters(architecture: str, path: Path, stated: Mapping[str, float]) -> dict[str, Any]:
    """`yarn_keys` backwards: the parameters, as config.json has them, of which these keys would be made.

    stated: the numbers in the file at `path`, by their keys without `rope.scaling.` in front; `factor` is one of them.

    Raises FormatError for a factor that makes no sense, UnsupportedError for keys of which no parameters are known.
    """
    factor = stated["factor"]
    if factor < 1:
        raise FormatError(path, f"metadata rope.scaling.factor {factor:g} must be at least 1")
    names = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        **{f"yarn_{name}": name for name in _BETAS},
    }
    usual = {name: stated[key] for key, name in names.items() if key in stated}
    multiplier = stated.get("yarn_log_multiplier", 0.0) if architecture in (*_LATENT, *_READ_MULTIPLIER) else 0.0
    wanted = {} if not multiplier else {"rope.scaling.yarn_log_multiplier": f32(multiplier)}
    given = stated.get("attn_factor", 1.0)
    wanted |= _attention_factor(given)
    for parameters in _attention_parameters(architecture, factor, given, multiplier):
        rope = Rope(path, 1.0, "yarn", {**usual, **parameters})
        if _attention_keys(architecture, rope, factor) == wanted:
            return rope.parameters
    raise UnsupportedError(
        f"{path}: metadata rope.scaling.attn_factor {given:g} and yarn_log_multiplier {multiplier:g}; config.json "
        "could not say the same"
    )


def _attention_parameters(
    architecture: str, factor: float, given: float, multiplier: float
) -> Iterator[dict[str, float]]:
    """What config.json may say for these keys, the simplest first."""
    growing = 0.1 * math.log(factor)
    if architecture in _LATENT:
        rotated = given if multiplier else given * growth(factor, 1.0)
        scaled = rotated * growth(factor, 10 * multiplier)
        whole = (scaled - 1) / growing if growing else 0.0
    elif multiplier < 0:
        return
    else:
        rotated = given * growth(factor, 1.0) / growth(factor, multiplier)
        whole = multiplier
    if abs(whole) < 1e-5:
        yield {}
        yield {"attention_factor": float(f"{rotated:.6g}")}
        yield {"attention_factor": rotated}
    for digits in (6, 17):
        alike = float(f"{whole:.{digits}g}")
        other = (rotated * growth(factor, alike) - 1) / growing if growing else 0.0
        other = float(f"{other:.{digits}g}")
        if not 1 / LARGEST_FACTOR <= alike <= LARGEST_FACTOR:
            return
        if 1 / LARGEST_FACTOR <= other <= LARGEST_FACTOR:
            yield {"mscale": other, "mscale_all_dim": alike}
        yield {"mscale_all_dim": alike}
        yield {"mscale_all_dim": alike, "attention_factor": rotated}


def _latent_factors(rope: Rope, factor: float) -> dict[str, Value]:
    """The keys of a graph of latent attention, which also scales attention by the square of mscale_all_dim's growth.

    With r for attn_factor and m not 0, llama.cpp multiplies what is rotated by r and scales attention by the square of
    r (1 + 0.1 m ln(factor)): m follows from what both must be. With m 0 both are r (1 + 0.1 ln(factor)).
    """
    rotated = yarn_attention(rope, factor)
    scaled = growth(factor, bounded(rope, "mscale_all_dim")) if rope.parameters.get("mscale_all_dim") else 1.0
    if math.isclose(rotated, scaled, rel_tol=1e-6):
        return _attention_factor(rotated / growth(factor, 1.0))
    if factor == 1:
        raise UnsupportedError(f"{rope.path}: rope scaling 'yarn' with factor 1 and attention_factor {rotated:g}")
    multiplier = (scaled / rotated - 1.0) / (0.1 * math.log(factor))
    return {"rope.scaling.yarn_log_multiplier": f32(0.1 * multiplier), **_attention_factor(rotated)}


def _attention_factor(value: float) -> dict[str, Value]:
    return {} if math.isclose(value, 1.0, rel_tol=1e-6) else {"rope.scaling.attn_factor": f32(value)}


def _refuse_what_is_not_computed(architecture: str, rope: Rope) -> None:
    # The first YaRN models' own code knows these; transformers does not.
    fixed = {"extrapolation_factor": 1.0, "attn_factor": 1.0}
    if architecture not in _READ_BETAS:
        fixed |= _BETAS
    for name, value in fixed.items():
        if not math.isclose(rope.number(name, value), value, rel_tol=1e-4):
            raise UnsupportedError(
                f"{rope.path}: rope scaling 'yarn' with {name} {excerpt(rope.parameters[name])}; llama.cpp computes "
                f"this architecture with {value:g} only"
            )
