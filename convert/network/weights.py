"""The tensors that a graph uses: those of the family, in Hugging Face's order of rows, some joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from llmkit.convert.archs import Family, HParams, Source, TensorRule, blocks
from llmkit.convert.matching import MatchedTensor
from llmkit.convert.network.alternating import AlternatingRows
from llmkit.convert.plan import Computed, Stored
from llmkit.convert.transforms import Map

Part = Stored | Computed


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the graph: its values as in a `PlannedTensor`, without a place and a type.

    `members` are the names of the tensors of the family that it is made of. All of them multiply the same activations,
    so an importance matrix has the same for each.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    members: tuple[str, ...]
    map: Map | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its own and its members', each once."""
        return tuple(dict.fromkeys((self.name, *self.members)))


def gather_weights(
    hparams: HParams, matched: Sequence[MatchedTensor], may_join: Callable[[Sequence[Weight]], bool]
) -> dict[str, Weight]:
    """The weights by name, in the order of the graph; queries, keys and values of a block are one matrix.

    The one has the name `attn_qkv`. Where only some of the three have a bias, the others' is zeros. The three stay
    apart where all queries together are normalised, and where `may_join` is false of them. The experts' gates and what
    these multiply are `ffn_gate_up_exps`.
    """
    found = {m.name: Weight(m.name, m.shape, m.parts, (m.name,), m.rule.map) for m in matched}
    for block in range(hparams.n_layers):
        _join_attention(found, hparams, f"blk.{block}.", may_join)
        _join_experts(found, f"blk.{block}.ffn_")
    return found


def _join_attention(
    found: dict[str, Weight], hparams: HParams, prefix: str, may_join: Callable[[Sequence[Weight]], bool]
) -> None:
    names = [f"{prefix}attn_{role}" for role in "qkv"]
    weights = [weight for name in names if (weight := found.get(f"{name}.weight")) is not None]
    if len(weights) < len(names) or not may_join(weights):
        return
    norm = found.get(f"{prefix}attn_q_norm.weight")
    if norm is not None and norm.shape != (hparams.head_dim,):
        return  # of all heads together: queries must be there by themselves
    biases = [found.get(f"{name}.bias") for name in names]
    rows = [weight.shape[0] for weight in weights]
    joined = {f"{prefix}attn_qkv.weight": _stacked(f"{prefix}attn_qkv.weight", weights)}
    if any(bias is not None for bias in biases):
        whole = [
            Weight(f"{name}.bias", (n,), (Computed((0.0,) * n),), (f"{name}.bias",)) if bias is None else bias
            for name, n, bias in zip(names, rows, biases, strict=True)
        ]
        joined[f"{prefix}attn_qkv.bias"] = _stacked(f"{prefix}attn_qkv.bias", whole)
    _replace(found, names, joined)


def _join_experts(found: dict[str, Weight], prefix: str) -> None:
    """Rows of the gates and of what they multiply take turns, in `ffn_gate_up_exps`."""
    names = [f"{prefix}{role}_exps" for role in ("gate", "up")]
    joined = {}
    for kind in ("weight", "bias"):
        gate, up = (found.get(f"{name}.{kind}") for name in names)
        if gate is None or up is None:
            continue
        name = f"{prefix}gate_up_exps.{kind}"
        columns = gate.shape[-1] if kind == "weight" else 1
        pairs = zip(gate.parts, up.parts, strict=True)
        shape = (gate.shape[0], 2 * gate.shape[1], *gate.shape[2:])
        joined[name] = Weight(name, shape, tuple(_in_turns(pair, columns) for pair in pairs), (gate.name, up.name))
    _replace(found, names, joined)


def _in_turns(parts: tuple[Part, Part], columns: int) -> Stored:
    stored = tuple(part for part in parts if isinstance(part, Stored))
    assert len(stored) == len(parts), "experts are stored"
    return Stored.whole(AlternatingRows(stored, columns))


def _replace(found: dict[str, Weight], names: Sequence[str], joined: Mapping[str, Weight]) -> None:
    """Put `joined` in the place of the first of `names`, so that the file keeps the order in which the model computes.

    The names are without `.weight` and `.bias`.
    """
    if not joined:
        return
    ordered: dict[str, Weight] = {}
    for name, weight in found.items():
        if name == f"{names[0]}.weight":
            ordered |= joined
        elif name.removesuffix(".weight").removesuffix(".bias") not in names:
            ordered[name] = weight
    found.clear()
    found.update(ordered)


def _stacked(name: str, weights: Sequence[Weight]) -> Weight:
    """The rows of several matrices, or elements of vectors, one after the other."""
    assert len({(weight.map, weight.shape[1:]) for weight in weights}) == 1, name
    shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])
    parts = tuple(part for weight in weights for part in weight.parts)
    members = tuple(member for weight in weights for member in weight.members)
    return Weight(name, shape, parts, members, weights[0].map)


def n_parameters(weights: Mapping[str, Weight]) -> int:
    """Numbers of the model."""
    return sum(prod(weight.shape) for weight in weights.values())


def has_interleaved_heads(rule: TensorRule) -> bool:
    """Whether llama.cpp wants the rows of a tensor's heads in another order than Hugging Face's."""
    return any(source.view is blocks.interleaved_heads for source in rule.sources)


def in_natural_order(family: Family) -> Family:
    """The family with rows of queries and keys as Hugging Face has them, which llama.cpp wants in another order."""

    def natural(source: Source) -> Source:
        return replace(source, view=None) if source.view is blocks.interleaved_heads else source

    return replace(
        family,
        tensors=tuple(replace(rule, sources=tuple(map(natural, rule.sources))) for rule in family.tensors),
    )
