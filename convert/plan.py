"""What a conversion will do, decided before any weight is read.

A plan is made from headers, config and tokenizer alone. It names every output tensor with its source, transform,
type and byte range, so executing it only fills byte ranges, in any order and by any number of threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from llmkit.convert.archs import Family, HParams, InterleaveHalves, Presence, TensorRule, excerpt
from llmkit.convert.checkpoint import Checkpoint
from llmkit.errors import FormatError, UnsupportedError
from llmkit.types import BLOCK_LAYOUTS, TensorInfo, TensorType

# SafeTensors dtypes that hold weights llmkit reads.
FLOAT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor: where its values come from and which bytes of the file they fill.

    `shape` has the slowest dimension first. `source` is a tensor of the checkpoint, or the values themselves for the
    few that are computed from the config (float32). `wanted` differs from `type` where the recipe had to fall back,
    for the stated `reason`. `offset` counts from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    source: TensorInfo | tuple[float, ...]
    rows: InterleaveHalves | None
    offset: int
    nbytes: int
    wanted: TensorType
    reason: str = ""

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors that share one reason for not getting the type the recipe wanted."""

    wanted: TensorType
    type: TensorType
    reason: str
    n_tensors: int
    n_elements: int
    n_bits: float  # of these tensors
    n_bits_wanted: float  # had the wanted type fitted


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A complete conversion: `header` at the start, then every tensor at its offset, `total_bytes` in all."""

    source: Path
    target: str
    architecture: str
    label: str  # of the recipe, such as Q4_K_M
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    total_bytes: int
    notes: tuple[str, ...]

    @property
    def n_params(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors, without the header."""
        return 8 * sum(t.nbytes for t in self.tensors) / self.n_params

    @property
    def bits_per_weight_wanted(self) -> float:
        """The same, had no tensor needed a fallback."""
        extra = sum(f.n_bits - f.n_bits_wanted for f in self.fallbacks)
        return self.bits_per_weight - extra / self.n_params

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Fallbacks grouped by what was wanted, what was taken and why."""
        groups: dict[tuple[TensorType, TensorType, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            if tensor.wanted is not tensor.type:
                groups.setdefault((tensor.wanted, tensor.type, tensor.reason), []).append(tensor)
        return tuple(
            Fallback(
                wanted,
                type,
                reason,
                len(members),
                n := sum(t.n_elements for t in members),
                n * BLOCK_LAYOUTS[type].bits_per_weight,
                n * BLOCK_LAYOUTS[wanted].bits_per_weight,
            )
            for (wanted, type, reason), members in groups.items()
        )

    @property
    def types(self) -> dict[TensorType, tuple[int, int, int]]:
        """Per type: number of tensors, weights, bytes."""
        tensors: Counter[TensorType] = Counter()
        weights: Counter[TensorType] = Counter()
        sizes: Counter[TensorType] = Counter()
        for t in self.tensors:
            tensors[t.type] += 1
            weights[t.type] += t.n_elements
            sizes[t.type] += t.nbytes
        return {type: (tensors[type], weights[type], sizes[type]) for type in tensors}


@dataclass(frozen=True, slots=True)
class MatchedTensor:
    """A checkpoint tensor with the rule that claims it; `block` is None outside the blocks."""

    rule: TensorRule
    block: int | None
    source: TensorInfo


def match_tensors(family: Family, hparams: HParams, checkpoint: Checkpoint) -> tuple[list[MatchedTensor], list[str]]:
    """Give every checkpoint tensor its rule, in the order the model computes; also returns notes.

    Raises FormatError for a tensor whose presence or shape contradicts config.json, UnsupportedError for a dtype
    that is not a float type or for tensors that no rule claims: weights are never dropped in silence.
    """
    remaining = dict(checkpoint.tensors)
    matched = []
    notes = []
    for rule, block, name in _expected(family, hparams):
        source = remaining.pop(name, None)
        presence = rule.presence(hparams)
        if source is None:
            if presence is Presence.REQUIRED:
                raise FormatError(checkpoint.folder, _missing(rule, block, hparams, checkpoint), tensor=name)
            continue
        if presence is Presence.ABSENT:
            raise FormatError(source.path, "is there, but config.json describes a model without it", tensor=name)
        if rule.role == "output" and hparams.tied_embeddings:
            notes.append(f"config.json ties {name} to the embedding, but the checkpoint holds it too: it is kept")
        expected = rule.shape(hparams)
        if source.shape != expected:
            raise FormatError(
                source.path,
                f"shape {list(source.shape)} contradicts config.json, which makes it {list(expected)}",
                tensor=name,
            )
        if source.dtype not in FLOAT_DTYPES:
            raise UnsupportedError(
                f"{source.path}: tensor {name!r} has dtype {source.dtype}; weights may be {', '.join(FLOAT_DTYPES)}"
            )
        matched.append(MatchedTensor(rule, block, source))
    unknown = [name for name in remaining if not family.is_unused(name)]
    if unknown:
        shown = ", ".join(excerpt(name, 100) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UnsupportedError(
            f"{checkpoint.folder}: {len(unknown)} tensors have no place in architecture "
            f"{family.architectures[0]}: {shown}"
        )
    return matched, notes


def _expected(family: Family, hparams: HParams) -> Iterator[tuple[TensorRule, int | None, str]]:
    """Every (rule, block, checkpoint name): tensors before the blocks, block after block, tensors after them."""
    first = next(i for i, rule in enumerate(family.tensors) if rule.per_block)
    last = max(i for i, rule in enumerate(family.tensors) if rule.per_block)
    for rule in family.tensors[:first]:
        yield rule, None, rule.pattern
    for block in range(hparams.n_layers):
        for rule in family.tensors[first : last + 1]:
            yield rule, block, rule.pattern.replace("{i}", str(block))
    for rule in family.tensors[last + 1 :]:
        yield rule, None, rule.pattern


def _missing(rule: TensorRule, block: int | None, hparams: HParams, checkpoint: Checkpoint) -> str:
    if rule.role == "output":
        return "missing, and config.json does not tie it to the embedding (tie_word_embeddings)"
    if block is not None:
        return f"missing; config.json says num_hidden_layers {hparams.n_layers}"
    example = excerpt(next(iter(checkpoint.tensors), "none"), 100)
    return f"missing; the checkpoint has {len(checkpoint.tensors)} tensors, such as {example}"
