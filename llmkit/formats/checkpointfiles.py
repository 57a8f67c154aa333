"""What the names of a folder's or repository's files say about the model in it; no file is opened here.

SafeTensors names: `model.safetensors`, `model.safetensors.index.json` and the shards beside it. PyTorch's:
`pytorch_model.bin` and the like.
Cache names: the huggingface_hub documentation, "Understand caching".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
GENAI_CONFIG: Final = "genai_config.json"
MANIFEST: Final = "llmkit.json"  # of folders of other deployment formats
PYTORCH_INDEX: Final = "pytorch_model.bin.index.json"
PYTORCH_SINGLE: Final = "pytorch_model.bin"

# Everything besides the weights that a conversion reads.
COMPANIONS: Final[tuple[str, ...]] = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "*_Pooling/config.json",
    "sentence_bert_config.json",
    "README.md",
    "LICENSE*",
)

# PyTorch's checkpoints: a pickle in a ZIP archive, which may ask for code; only those that ask for none are read.
PICKLE_SUFFIXES: Final = (".bin", ".pth", ".pt", ".ckpt")
# Files of these endings that hold no weights (what transformers' Trainer leaves behind), or are no pickles.
_NO_PICKLED_WEIGHTS: Final = ("training_args", "optimizer", "scheduler", "rng_state", "openvino_", "ggml-", "tokenizer")
# Weights of another layout than config.json describes.
_OTHER_LAYOUTS: Final = ("adapter", "consolidated")
OTHER_WEIGHTS: Final[tuple[str, ...]] = ("*.onnx", "*.h5", "*.msgpack", "*.tflite", "*.npz", "*.nemo")
# The endings that make a MODEL argument a path rather than a name.
FILE_SUFFIXES: Final = (
    ".gguf", ".safetensors", *PICKLE_SUFFIXES, ".onnx", ".json",
    ".pdiparams", ".pdparams", ".params", ".caffemodel", ".index",
)  # fmt: skip

_PART: Final = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.safetensors|(?i:\.gguf))"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a numbered set, `<stem>-00002-of-00005<suffix>`: a shard of a checkpoint or of a GGUF model."""

    stem: str
    number: int
    count: int
    suffix: str

    def sibling(self, number: int) -> str:
        """The name of the set's file `number`, counted from 1."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"


def part_of_set(name: str) -> Part | None:
    """`name` as the name of a numbered .safetensors or .gguf file; None if it is none."""
    found = _PART.fullmatch(name)
    return Part(found["stem"], int(found["number"]), int(found["count"]), found["suffix"]) if found else None


def whole_set(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is a part of, whether they are there or not."""
    part = part_of_set(path.name)
    return [path] if part is None else [path.with_name(part.sibling(number)) for number in range(1, part.count + 1)]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a set of file names amounts to.

    `safetensors` are all root files of the format but adapters and consolidated weights (the same weights a second
    time, in Mistral's repositories); `pickles` are PyTorch's. `weights` are those to read, of one of the two kinds: the
    one file, the complete numbered set, or, when `index` is set, every file that the index may name. `ggufs` has one
    entry per model: a split model counts by its first file.
    """

    names: frozenset[str]
    has_config: bool
    index: str | None
    safetensors: tuple[str, ...]
    weights: tuple[str, ...]
    ggufs: tuple[str, ...]
    pickles: tuple[str, ...]
    other_weights: tuple[str, ...]
    is_adapter: bool
    is_consolidated: bool

    @property
    def is_checkpoint(self) -> bool:
        return self.has_config and bool(self.weights or self.index)

    @property
    def is_genai(self) -> bool:
        """Whether it is a folder for ONNX Runtime GenAI."""
        return GENAI_CONFIG in self.names

    @property
    def is_exported(self) -> bool:
        """Whether llmkit made it, in another deployment format."""
        return MANIFEST in self.names

    @property
    def has_weights(self) -> bool:
        """Weights of any kind, readable or not."""
        unreadable = self.pickles or self.other_weights or self.is_adapter or self.is_consolidated
        return bool(self.safetensors or self.ggufs or self.index or unreadable)

    @property
    def companions(self) -> tuple[str, ...]:
        return tuple(sorted(n for n in self.names if any(_matches(n, pattern) for pattern in COMPANIONS)))


def contents(names: Iterable[str]) -> Contents:
    """Classify file names (relative, with `/`); only weights and config.json at the root make a checkpoint.

    SafeTensors are taken where there are both.
    """
    all_names = frozenset(names)
    root = sorted(n for n in all_names if "/" not in n)
    consolidated = [n for n in root if n.startswith("consolidated") and n.endswith(".safetensors")]
    plain = [n for n in root if n.endswith(".safetensors") and not n.startswith(("consolidated", "adapter"))]
    index = None
    if SINGLE in plain:
        weights = [SINGLE]  # transformers, too, prefers the single file where a repository has both
    elif INDEX in all_names:
        index, weights = INDEX, plain
    elif (len(plain) == 1 and not part_of_set(plain[0])) or _is_full_set(plain):
        weights = plain
    else:
        weights = []
    has_config = CONFIG in all_names
    pickles = tuple(n for n in root if n.endswith(PICKLE_SUFFIXES) and not n.startswith(_NO_PICKLED_WEIGHTS))
    if not plain and index is None:
        index, weights = _pytorch_weights(all_names, [n for n in pickles if not n.startswith(_OTHER_LAYOUTS)])
    is_original = "params.json" in all_names and not has_config and bool(pickles)  # Meta's own layout
    return Contents(
        names=all_names,
        has_config=has_config,
        index=index,
        safetensors=tuple(plain),
        weights=tuple(weights),
        ggufs=gguf_models(all_names),
        pickles=pickles,
        other_weights=tuple(sorted(n for n in all_names if any(fnmatchcase(n, p) for p in OTHER_WEIGHTS))),
        is_adapter="adapter_config.json" in all_names,
        is_consolidated=not plain and (bool(consolidated) or is_original),
    )


def _pytorch_weights(names: frozenset[str], pickles: list[str]) -> tuple[str | None, list[str]]:
    """The index and the files to read of a checkpoint of PyTorch's; empty if what belongs to it is not clear."""
    if PYTORCH_SINGLE in pickles:
        return None, [PYTORCH_SINGLE]
    if PYTORCH_INDEX in names:
        return PYTORCH_INDEX, pickles
    return None, pickles if len(pickles) == 1 else []


def gguf_models(names: Iterable[str]) -> tuple[str, ...]:
    """The GGUF files that are models: no vision projector or importance matrix, of a split model the first file only.

    llama.cpp loads a split model by its first file.
    """
    models = []
    for name in sorted(names):
        base = PurePosixPath(name).name
        if not base.lower().endswith(".gguf") or base.lower().startswith("mmproj"):
            continue
        if base.lower() == "imatrix.gguf" or base.lower().endswith(".imatrix.gguf"):
            continue
        part = part_of_set(base)
        if part and part.number != 1:
            continue
        models.append(name)
    return tuple(models)


def numbered_set(names: Iterable[str]) -> list[Part] | None:
    """The files as parts of one numbered set, complete or not; None if they are anything else."""
    parts = [part_of_set(name) for name in names]
    found = [part for part in parts if part]
    if not found or len(found) < len(parts) or len({(part.stem, part.count) for part in found}) > 1:
        return None
    return found


def cached_repo(folder: Path) -> str | None:
    """`org/name` if `folder`, resolved, is a snapshot in the Hugging Face cache (`<repo>/snapshots/<commit>`)."""
    return repo_of_cache_folder(folder.parent.parent.name) if folder.parent.name == "snapshots" else None


def repo_of_cache_folder(name: str) -> str | None:
    """`org/name` if `name` is that of a model repository's folder in the Hugging Face cache, `models--org--name`."""
    kind, _, repo = name.partition("--")
    return repo.replace("--", "/", 1) if kind == "models" and repo else None


def _is_full_set(names: list[str]) -> bool:
    parts = numbered_set(names)
    return parts is not None and [part.number for part in parts] == list(range(1, parts[0].count + 1))


def _matches(name: str, pattern: str) -> bool:
    """Like a shell: `*` does not cross a `/`."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
