"""Rotary frequencies: what config.json's settings make of them, in numbers that any target can take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import Rope, excerpt
from llmkit.errors import FormatError, UnsupportedError

ORIGINAL: Final = "original_max_position_embeddings"
LARGEST_FACTOR: Final = 1000.0  # beyond this, factors of attention are a slip of the pen


def llama3_factors(rope: Rope, n_rotated: int, n_context: int) -> list[float]:
    """Llama 3.1's frequency factors (transformers, `_compute_llama3_parameters`).

    Long wavelengths are slowed down by `factor`, short ones are kept, those between are blended.
    """
    factor = rope.number("factor")
    low = rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    original = rope.number("original_max_position_embeddings", n_context)
    if not low < high:
        raise FormatError(rope.path, f"low_freq_factor {low:g} must be less than high_freq_factor {high:g}")
    # float32 throughout: llama.cpp's converter computes these in float32, and its files are the reference.
    exponents = np.arange(0, n_rotated, 2, dtype=np.float32) / np.float32(n_rotated)
    wavelengths = np.float32(2 * math.pi) / (np.float32(1) / np.float32(rope.theta) ** exponents)
    factors = []
    for wavelength in wavelengths:
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(float(1 / ((1 - smooth) / np.float32(factor) + smooth)))
    return factors


def longrope_attention(rope: Rope, n_context: int) -> float:
    """What LongRoPE multiplies sines and cosines by (transformers, `_compute_longrope_parameters`)."""
    original = rope.number("original_max_position_embeddings", n_context)
    if original <= 1:
        raise FormatError(rope.path, f"original_max_position_embeddings {original:g} must be more than 1")
    factor = rope.number("factor", n_context / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return rope.number("attention_factor", usual)


def yarn_attention(rope: Rope, factor: float) -> float:
    """What YaRN multiplies the rotated queries and keys by (transformers, `_compute_yarn_parameters`)."""
    if rope.parameters.get("attention_factor") is not None:
        return bounded(rope, "attention_factor")
    if rope.parameters.get("mscale") and rope.parameters.get("mscale_all_dim"):
        return growth(factor, bounded(rope, "mscale")) / growth(factor, bounded(rope, "mscale_all_dim"))
    return growth(factor, 1.0)


def bounded(rope: Rope, key: str) -> float:
    """A parameter of YaRN that multiplies attention, within what makes sense. Raises FormatError."""
    value = rope.number(key)
    if not 1 / LARGEST_FACTOR <= value <= LARGEST_FACTOR:
        raise FormatError(
            rope.path,
            f"rope scaling 'yarn': {key} {value:g} must be between {1 / LARGEST_FACTOR:g} and {LARGEST_FACTOR:g}",
        )
    return value


def growth(factor: float, multiplier: float) -> float:
    """By how much attention is sharpened for a context that is `factor` times as long."""
    return 1.0 + 0.1 * multiplier * math.log(factor)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What positions are rotated by, and up to which position.

    frequencies: radians per position of each pair of dimensions, float32 [rotated dimensions / 2]. scale: multiplies
    the sines and cosines.
    """

    frequencies: NDArray[np.float32]
    scale: float
    positions: int


def rotations(rope: Rope, head_dim: int, n_context: int) -> tuple[Rotation, ...]:
    """As transformers has them: one, or of LongRoPE that of short texts and that of long ones.

    Raises UnsupportedError for a scaling that is not known.
    """
    n_rotated = rope.n_rotated(head_dim)
    # In this order and precision, as transformers computes them: at position 8,000 a last bit shows.
    exponents = np.arange(0, n_rotated, 2, dtype=np.float32) / np.float32(n_rotated)
    wavelengths: NDArray[np.float32] = np.power(np.full_like(exponents, rope.theta), exponents)
    plain: NDArray[np.float32] = (np.float32(1) / wavelengths).astype(np.float32)
    if rope.scaling in ("default", "dynamic"):
        return (Rotation(plain, 1.0, n_context),)
    if rope.scaling == "linear":
        return (Rotation(plain / np.float32(rope.number("factor")), 1.0, n_context),)
    if rope.scaling == "llama3":
        slower: NDArray[np.float32] = np.array(llama3_factors(rope, n_rotated, n_context), np.float32)
        return (Rotation(plain / slower, 1.0, n_context),)
    if rope.scaling == "yarn":
        return (_yarn(rope, n_rotated, n_context, plain),)
    if rope.scaling == "longrope":
        scale, original = longrope_attention(rope, n_context), int(rope.number(ORIGINAL, n_context))
        short, long = (np.array(rope.factors(f"{kind}_factor", n_rotated // 2)) for kind in ("short", "long"))
        return tuple(
            Rotation((np.float32(1) / (factors.astype(np.float32) * wavelengths)).astype(np.float32), scale, positions)
            for factors, positions in ((short, min(original, n_context)), (long, n_context))
        )
    raise UnsupportedError(f"{rope.path}: rope_type {excerpt(rope.scaling)} is not known")


def _yarn(rope: Rope, n_rotated: int, n_context: int, plain: NDArray[np.float32]) -> Rotation:
    """Between two dimensions, given by turns within the trained context, slow frequencies fade into `factor` slower."""
    original = rope.number(ORIGINAL, n_context)
    factor = rope.number("factor", n_context / original)

    def dimension(turns: float) -> float:
        return n_rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.number("beta_fast", 32.0)), dimension(rope.number("beta_slow", 1.0))
    if rope.parameters.get("truncate") is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rotated - 1)
    ramp = (np.arange(n_rotated // 2, dtype=np.float32) - low) / ((high - low) or 0.001)
    kept = 1 - np.clip(ramp, 0, 1)
    slowed = plain / np.float32(factor)
    return Rotation((slowed * (1 - kept) + plain * kept).astype(np.float32), yarn_attention(rope, factor), n_context)
