"""Matching a checkpoint's tensors with the rules of its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from llmkit.convert.archs import Family, HParams, Presence, Source, TensorRule, excerpt
from llmkit.convert.checkpoint import Checkpoint
from llmkit.convert.packed import PackedTensor
from llmkit.convert.packed.views import shows_whole_rows
from llmkit.convert.plan import Stored
from llmkit.errors import FormatError, UnsupportedError
from llmkit.types import TensorInfo, TensorType

# What a family's tensors are found in: one stored tensor each, or several that are put together.
Tensor = TensorInfo | PackedTensor

# SafeTensors dtypes that hold weights llmkit reads.
FLOAT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class MatchedTensor:
    """A target tensor with the rule that it is by and where the checkpoint has its values.

    `block` is None outside the blocks. `parts` follow one another: one, one for each expert, or one for each view.
    """

    rule: TensorRule
    block: int | None
    shape: tuple[int, ...]
    parts: tuple[Stored, ...]

    @property
    def stored_type(self) -> TensorType:
        """How the checkpoint stores the values; parts that are stored differently count as what the first one is."""
        type = self.parts[0].type
        assert isinstance(type, TensorType), f"{self.name} is matched to {type.name}"
        return type

    @property
    def name(self) -> str:
        """`blk.<i>.<role>`: the roles of the families are GGUF's own names."""
        return self.rule.role if self.block is None else f"blk.{self.block}.{self.rule.role}"


def match_tensors(
    family: Family, hparams: HParams, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]
) -> tuple[list[MatchedTensor], list[str]]:
    """Find the values of every tensor of the target, in the order the model computes; also returns notes.

    tensors: those of `checkpoint`, with quantised ones put together.

    Raises FormatError for a tensor whose presence or shape contradicts config.json, UnsupportedError for a dtype
    that is not a float type or for tensors that no rule claims: weights are never dropped in silence.
    """
    notes: list[str] = []
    available = _by_plain_name(family, tensors)
    used: set[str] = set()
    matched = []
    for rule, block in expected_rules(family, hparams):
        found = _find(rule, block, hparams, available)
        presence = rule.presence(hparams)
        if found is None:
            if presence is Presence.REQUIRED:
                name = source_names(rule.sources[0], rule, block, hparams)[0]
                raise FormatError(checkpoint.folder, _missing(rule, block, hparams, checkpoint), tensor=name)
            continue
        source, infos = found
        used.update(info.name for info in infos)
        if presence is Presence.ABSENT:
            raise FormatError(
                _path(infos[0]), "is there, but config.json describes a model without it", tensor=infos[0].name
            )
        if rule.role == "output.weight" and hparams.tied_embeddings and source is rule.sources[0]:
            notes.append(
                f"config.json ties {infos[0].name} to the embedding, but the checkpoint holds it too: it is kept"
            )
        shape = rule.shape(hparams)
        parts = tuple(part for info in infos for part in _parts(info, source, shape, hparams))
        matched.append(MatchedTensor(rule, block, shape, parts))
    left = {plain: info for plain, info in available.items() if info.name not in used}
    left = _without_further_layers(family, hparams, left, notes)
    _refuse_unknown(family, checkpoint, left, notes)
    return matched, notes


def _path(info: Tensor) -> Path:
    """The file that a tensor is in, or the first of several."""
    return Stored.whole(info).path


def _by_plain_name(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names that the rules use."""
    available: dict[str, Tensor] = {}
    for name, info in tensors.items():
        plain = family.plain_name(name)
        if plain in available:
            raise FormatError(_path(info), f"is there under two names, also as {available[plain].name!r}", tensor=name)
        available[plain] = info
    return available


def _find(
    rule: TensorRule, block: int | None, hparams: HParams, available: Mapping[str, Tensor]
) -> tuple[Source, list[Tensor]] | None:
    """The first source that the checkpoint has, and its tensors there."""
    for source in rule.sources:
        names = source_names(source, rule, block, hparams)
        if names[0] not in available or not source.given(hparams):
            continue
        for name in names:
            if name not in available:
                raise FormatError(
                    _path(available[names[0]]).parent, f"missing; config.json says there are {len(names)}", tensor=name
                )
        return source, [available[name] for name in names]
    return None


def source_names(source: Source, rule: TensorRule, block: int | None, hparams: HParams) -> list[str]:
    """The names of a source in a block: one, or one for each place in the target's first dimension."""
    pattern = source.pattern.replace("{i}", str(block))
    if "{e}" not in pattern:
        return [pattern]
    return [pattern.replace("{e}", str(place)) for place in range(rule.shape(hparams)[0])]


def _parts(info: Tensor, source: Source, shape: tuple[int, ...], hparams: HParams) -> tuple[Stored, ...]:
    """The tensor's elements as the target wants them, once its shape and dtype are what they must be."""
    target = shape[1:] if "{e}" in source.pattern else shape
    expected = source.stored(hparams) if source.stored else target
    if info.shape != expected:
        raise FormatError(
            _path(info),
            f"shape {list(info.shape)} contradicts config.json, which makes it {list(expected)}",
            tensor=info.name,
        )
    if isinstance(info, TensorInfo) and info.dtype not in FLOAT_DTYPES:
        raise UnsupportedError(
            f"{info.path}: tensor {info.name!r} has dtype {info.dtype}; weights may be {', '.join(FLOAT_DTYPES)}"
        )
    stored = Stored.whole(info)
    views = source.view(hparams, stored.view) if source.view else stored.view
    parts = tuple(Stored(info, view) for view in (views if isinstance(views, tuple) else (views,)))
    if isinstance(info, TensorInfo) or info.type is TensorType.F32:
        return parts
    if not all(shows_whole_rows(info, part.view.matrix(shape[-1])) for part in parts):
        raise UnsupportedError(
            f"{_path(info)}: tensor {info.name!r} is stored as {info.type.name}, and this architecture needs parts of "
            "its rows"
        )
    return parts


def _without_further_layers(
    family: Family, hparams: HParams, left: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Leaves out the layers that predict further tokens, with a note."""
    n_layers = hparams.n_layers
    further = {plain: info for plain, info in left.items() if family.is_of_further_layer(plain, n_layers)}
    if further:
        n_params = sum(prod(info.shape) for info in further.values())
        notes.append(
            f"{len(further)} tensors ({n_params / 1e6:,.1f} M parameters) of layers beyond num_hidden_layers "
            f"{n_layers} are left out: they predict further tokens, for speculative decoding"
        )
    return {plain: info for plain, info in left.items() if plain not in further}


def _refuse_unknown(family: Family, checkpoint: Checkpoint, left: Mapping[str, Tensor], notes: list[str]) -> None:
    others = [plain for plain in left if family.is_of_another_part(plain)]
    if others:
        n_params = sum(prod(left[plain].shape) for plain in others)
        notes.append(
            f"{len(others)} tensors ({n_params / 1e6:,.1f} M parameters) of the model's vision or audio part are left "
            "out: the file holds its text part"
        )
    unknown = [
        left[plain].name for plain in left if not family.is_unused(plain) and not family.is_of_another_part(plain)
    ]
    if unknown:
        shown = ", ".join(excerpt(name, 100) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UnsupportedError(
            f"{checkpoint.folder}: {len(unknown)} tensors have no place in architecture "
            f"{family.architectures[0]}: {shown}"
        )


def expected_rules(family: Family, hparams: HParams) -> Iterator[tuple[TensorRule, int | None]]:
    """Every rule with its blocks: tensors before the blocks, block after block, tensors after them."""
    first = next(i for i, rule in enumerate(family.tensors) if rule.per_block)
    last = max(i for i, rule in enumerate(family.tensors) if rule.per_block)
    for rule in family.tensors[:first]:
        yield rule, None
    for block in range(hparams.n_layers):
        for rule in family.tensors[first : last + 1]:
            if rule.blocks(hparams, block):
                yield rule, block
    for rule in family.tensors[last + 1 :]:
        yield rule, None


def _missing(rule: TensorRule, block: int | None, hparams: HParams, checkpoint: Checkpoint) -> str:
    if rule.role == "output.weight":
        return "missing, and config.json does not tie it to the embedding (tie_word_embeddings)"
    if block is not None:
        return f"missing; config.json says num_hidden_layers {hparams.n_layers}"
    example = excerpt(next(iter(checkpoint.tensors), "none"), 100)
    return f"missing; the checkpoint has {len(checkpoint.tensors)} tensors, such as {example}"
