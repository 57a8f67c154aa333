"""What a graph is made of: a checkpoint, or a GGUF file that might have come from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmkit.convert.archs import ConfigReader, Family, HParams, find_family
from llmkit.convert.archs.structure import Structure
from llmkit.convert.checkpoint import Checkpoint
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.lora.adapter import Adapter
from llmkit.convert.lora.merge import merge
from llmkit.convert.matching import MatchedTensor, expected_rules, match_tensors
from llmkit.convert.network.weights import has_interleaved_heads, in_natural_order
from llmkit.convert.packed import unpack
from llmkit.convert.plan import PlannedFile, Stored
from llmkit.convert.restore.plan import document, identify
from llmkit.convert.restore.tokenizer import special_ids, tokenizer_documents
from llmkit.convert.weightfiles import member
from llmkit.errors import UnsupportedError
from llmkit.formats.checkpointfiles import contents
from llmkit.quantize.recipes import PLAIN_TYPES
from llmkit.types import TensorType

# What the runtime's tokenizer reads.
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSource:
    """A model whose tensors have been found. `matched` have Hugging Face's order of rows; `token_ids` are by bos, eos
    and pad; `notes` tell what is left out."""

    path: Path
    family: Family
    structure: Structure
    hparams: HParams
    matched: Sequence[MatchedTensor]
    token_ids: Mapping[str, int | list[int]]
    tokenizer_files: Sequence[PlannedFile]
    notes: Sequence[str]


def from_checkpoint(checkpoint: Checkpoint, adapters: Sequence[Adapter] = ()) -> DecoderSource:
    """The model in a checkpoint folder, with `adapters` added to its weights.

    Raises UnsupportedError for a family that llmkit makes no graph of, and what reading a checkpoint raises.
    """
    whole = ConfigReader(checkpoint.folder / "config.json", checkpoint.config)
    family = find_family(whole)
    structure = _structure(family, whole.path)
    config = whole.within(family.text_config) if family.text_config and family.text_config in whole else whole
    notes: list[str] = []
    hparams = structure.complete(config, family.read_hparams(config))
    stored = merge(unpack(whole, checkpoint.tensors, notes), adapters, notes)
    matched, found = match_tensors(in_natural_order(family), hparams, checkpoint, stored)
    return DecoderSource(
        path=checkpoint.folder,
        family=family,
        structure=structure,
        hparams=hparams,
        matched=matched,
        token_ids=_token_ids(checkpoint, config),
        tokenizer_files=_tokenizer_files(checkpoint.folder),
        notes=(*notes, *found),
    )


def from_gguf(source: GGUFSource) -> DecoderSource:
    """The model in a GGUF file; quantised weights are decoded.

    Raises UnsupportedError for an architecture or tokenizer that llmkit cannot restore, or makes no graph of;
    FormatError for damage.
    """
    family, hparams, _ = identify(source, keep_blocks=False)
    structure = _structure(family, source.path)
    tensors = {tensor.name: tensor for tensor in source.tensors}
    matched = []
    for rule, block in expected_rules(family, hparams):
        info = tensors.get(rule.role if block is None else f"blk.{block}.{rule.role}")
        if info is None or (rule.role == "output.weight" and hparams.tied_embeddings):
            continue
        view = Stored.whole(info).view
        if has_interleaved_heads(rule):
            # Rows 2j and 2j + 1 of a head become its rows j and j + head_dim / 2.
            view = view.split(0, -1, hparams.head_dim // 2, 2).swap(1, 2)
        matched.append(MatchedTensor(replace(rule, map=None), block, info.shape, (Stored(info, view),)))
    notes = []
    again = {tensor.dtype for tensor in source.tensors if TensorType[tensor.dtype] not in PLAIN_TYPES}
    if again:
        notes.append(f"weights are {' and '.join(sorted(again))} in the file: what that lost stays lost")
    files = [document(name, value) for name, value in tokenizer_documents(source, hparams.n_context).items()]
    return DecoderSource(
        path=source.path,
        family=family,
        structure=structure,
        hparams=hparams,
        matched=matched,
        token_ids={name.removesuffix("_token_id"): ids for name, ids in special_ids(source).items()},
        tokenizer_files=files,
        notes=notes,
    )


def _structure(family: Family, path: Path) -> Structure:
    if family.structure is None:
        raise UnsupportedError(f"{path}: llmkit has no graph of {family.architectures[0]} yet: convert it to GGUF")
    return family.structure


def _token_ids(checkpoint: Checkpoint, config: ConfigReader) -> dict[str, int | list[int]]:
    """The ids of the tokens that begin, end and fill texts; generation_config.json knows best."""
    found: dict[str, int | list[int]] = {}
    sources: tuple[Mapping[str, Any], ...] = (checkpoint.generation_config, config.values, checkpoint.config)
    for kind in ("bos", "eos", "pad"):
        for source in sources:
            value = source.get(f"{kind}_token_id")
            if isinstance(value, int) or (isinstance(value, list) and value and kind == "eos"):
                found[kind] = value
                break
    return found


def _tokenizer_files(folder: Path) -> list[PlannedFile]:
    """The files of the tokenizer, as they are."""
    names = contents(path.name for path in folder.iterdir()).names
    found = []
    for name in _TOKENIZER_FILES:
        if name in names:
            data = member(folder, name).read_bytes()
            found.append(PlannedFile(data, (), len(data), name))
    return found
