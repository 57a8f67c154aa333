"""The vocabulary in which a model family is described.

A family is data: how its config.json is read into hyper-parameters, and one rule per kind of tensor, naming
its role, its shape and where checkpoints have its values. What a target (GGUF now) makes of a role is the target's
business.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.structure import Structure
from llmkit.convert.transforms import Map, View


class Presence(Enum):
    """Whether a checkpoint holds a tensor, given its config."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    ABSENT = "absent"  # the model does not use it; if it is there all the same, config and weights disagree


Shape = Callable[[HParams], tuple[int, ...]]
Arrangement = Callable[[HParams, View], View | tuple[View, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint has the values of a tensor.

    `pattern` is the name there, with `{i}` where the block's number stands and `{e}` where that of the expert does:
    there are as many as the target's first dimension has places, one beside the other. `stored` is the shape of one of
    them, where it is not that of the target; `view` picks the target's elements from it, in their order; of several
    views one follows the other. `given` tells which models may have it there.
    """

    pattern: str
    stored: Shape | None = None
    view: Arrangement | None = None
    given: Callable[[HParams], bool] = lambda h: True


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One kind of tensor: its `role` and shape in the target, and where checkpoints have it.

    Of several `sources` the first that a checkpoint has is taken; generations of one family name things differently.
    `blocks` tells which blocks have it at all.
    """

    role: str
    shape: Shape
    sources: tuple[Source, ...]
    presence: Callable[[HParams], Presence]
    blocks: Callable[[HParams, int], bool]
    map: Map | None

    @property
    def per_block(self) -> bool:
        return "{i}" in self.sources[0].pattern


def tensor(
    role: str,
    shape: Shape,
    *sources: str | Source,
    view: Arrangement | None = None,
    presence: Callable[[HParams], Presence] = lambda h: Presence.REQUIRED,
    blocks: Callable[[HParams, int], bool] = lambda h, i: True,
    map: Map | None = None,
) -> TensorRule:
    """A rule, with sources that are plain names written as such; `view` is then that of each of these."""
    found = tuple(s if isinstance(s, Source) else Source(s, view=view) for s in sources)
    return TensorRule(role, shape, found, presence, blocks, map)


def when(flag: Callable[[HParams], bool]) -> Callable[[HParams], Presence]:
    """Required if the config says so, else absent."""
    return lambda h: Presence.REQUIRED if flag(h) else Presence.ABSENT


def required(h: HParams) -> Presence:
    """Every model of the family has the tensor."""
    return Presence.REQUIRED


def untied(h: HParams) -> Presence:
    """The presence of an output matrix, which tied embeddings make unnecessary."""
    return Presence.OPTIONAL if h.tied_embeddings else Presence.REQUIRED


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, named after config.json's `model_type`.

    `unused` are regular expressions of checkpoint tensors that inference does not need. `prefixes` are what names of
    tensors may begin with beside what the rules say: (there, here). `notes` says in words what the conversion cannot
    carry over for a given config. `text_config` is the key under which the config of a multimodal model has that of
    its text part; the tensors of its other parts match `other_parts`. `further_layers` is a regular expression of the
    tensors of layers, whose group is the layer's number: layers beyond those of the model predict further tokens.

    For the way back (see `llmkit.convert.restore`) `write_config` is `read_hparams` backwards: the entries of
    config.json, without those that all families have in common. `from_file` adds to the hyper-parameters what a file's
    metadata says in ways that only this family has. Where several families have a GGUF architecture in common, `wrote`
    tells whether a file with these hyper-parameters is of this one, and `tokenizers` of which kinds, by
    `tokenizer.ggml.model`, its tokenizer may be; none are named where it may be any.

    `structure` says how the tensors compute, for targets that need a graph; None where llmkit writes none.
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf_architecture: str
    read_hparams: Callable[[ConfigReader], HParams]
    tensors: tuple[TensorRule, ...]
    unused: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    notes: Callable[[ConfigReader, HParams], tuple[str, ...]] = lambda config, hparams: ()
    text_config: str | None = None
    other_parts: tuple[str, ...] = ()
    write_config: Callable[[HParams], dict[str, Any]] | None = None
    further_layers: str | None = None
    wrote: Callable[[HParams], bool] = lambda hparams: True
    from_file: Callable[[ConfigReader, HParams], HParams] = lambda metadata, hparams: hparams
    tokenizers: tuple[str, ...] = ()
    structure: Structure | None = None

    def is_unused(self, name: str) -> bool:
        """Whether inference does without the checkpoint tensor `name`."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)

    def is_of_another_part(self, name: str) -> bool:
        """Whether the checkpoint tensor `name` belongs to the vision or audio part of a multimodal model."""
        return any(re.fullmatch(pattern, name) for pattern in self.other_parts)

    def is_of_further_layer(self, name: str, n_layers: int) -> bool:
        """Whether the checkpoint tensor `name` belongs to a layer beyond the model's `n_layers`."""
        found = re.fullmatch(self.further_layers, name) if self.further_layers is not None else None
        return found is not None and int(found[1]) >= n_layers

    def plain_name(self, name: str) -> str:
        """A checkpoint's name for a tensor as the rules have it."""
        for there, here in self.prefixes:
            if name.startswith(there):
                return here + name.removeprefix(there)
        return name
