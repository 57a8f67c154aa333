"""Matching a checkpoint's tensors with the rules of its family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.convert.archs import Family, HParams, Presence, TensorRule, excerpt
from llmkit.convert.checkpoint import Checkpoint
from llmkit.errors import FormatError, UnsupportedError
from llmkit.types import TensorInfo

# SafeTensors dtypes that hold weights llmkit reads.
FLOAT_DTYPES = ("F32", "F16", "BF16")


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
