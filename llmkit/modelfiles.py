"""What the names of a folder's or repository's files say about the model in it; no file is opened here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"

# Everything besides the weights that a conversion reads.
COMPANIONS: Final[tuple[str, ...]] = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
)

# Weights in Python's pickle format (or a ZIP of it), which runs code when it is loaded.
PICKLES: Final[tuple[str, ...]] = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")
OTHER_WEIGHTS: Final[tuple[str, ...]] = ("*.onnx", "*.h5", "*.msgpack", "*.tflite", "*.npz", "*.nemo")

NUMBERED_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# llama.cpp names the files of a split model `<name>-00001-of-00003.gguf` and loads it by its first file.
SPLIT_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a set of file names amounts to.

    `weights` are the SafeTensors files to read: the one file, or, when `index` is set, every root file that
    the index may name. `ggufs` has one entry per model: a split model counts by its first file.
    """

    names: frozenset[str]
    has_config: bool
    index: str | None
    weights: tuple[str, ...]
    ggufs: tuple[str, ...]
    pickles: tuple[str, ...]
    other_weights: tuple[str, ...]
    is_adapter: bool
    is_consolidated: bool

    @property
    def is_checkpoint(self) -> bool:
        return self.has_config and bool(self.weights)

    @property
    def has_weights(self) -> bool:
        """Weights of any kind, readable or not."""
        unreadable = self.pickles or self.other_weights or self.is_adapter or self.is_consolidated
        return bool(self.weights or self.ggufs or self.index or unreadable)

    @property
    def companions(self) -> tuple[str, ...]:
        return tuple(sorted(n for n in self.names if any(_matches(n, pattern) for pattern in COMPANIONS)))


def contents(names: Iterable[str]) -> Contents:
    """Classify file names (relative, with `/`); only SafeTensors and config.json at the root make a checkpoint."""
    all_names = frozenset(names)
    root = sorted(n for n in all_names if "/" not in n)
    safetensors = [n for n in root if n.endswith(".safetensors")]
    plain = [n for n in safetensors if not n.startswith(("consolidated", "adapter_"))]
    index = None
    if SINGLE in plain:
        weights = [SINGLE]  # transformers, too, prefers the single file where a repository has both
    elif INDEX in all_names:
        index, weights = INDEX, plain
    elif (len(plain) == 1 and not NUMBERED_NAME.fullmatch(plain[0])) or _is_full_set(plain):
        weights = plain
    else:
        weights = []
    return Contents(
        names=all_names,
        has_config=CONFIG in all_names,
        index=index,
        weights=tuple(weights),
        ggufs=gguf_models(all_names),
        pickles=tuple(n for n in root if any(fnmatchcase(n, p) for p in PICKLES)),
        other_weights=tuple(sorted(n for n in all_names if any(fnmatchcase(n, p) for p in OTHER_WEIGHTS))),
        is_adapter="adapter_config.json" in all_names,
        is_consolidated=bool(safetensors) and not plain and any(n.startswith("consolidated") for n in safetensors),
    )


def gguf_models(names: Iterable[str]) -> tuple[str, ...]:
    """The GGUF files that are models: no vision projectors, and of a split model the first file only."""
    models = []
    for name in sorted(names):
        base = PurePosixPath(name).name
        if not base.lower().endswith(".gguf") or base.lower().startswith("mmproj"):
            continue
        split = SPLIT_NAME.fullmatch(base)
        if split and int(split["number"]) != 1:
            continue
        models.append(name)
    return tuple(models)


def why_no_checkpoint(found: Contents, where: str) -> str:
    """One message: what `where` holds instead of a SafeTensors checkpoint, and what to do."""
    if found.is_adapter and not found.weights:
        return (
            f"{where} holds a LoRA adapter (adapter_config.json), not a whole model. Merge it into its base model "
            "first (peft: merge_and_unload, then save_pretrained) and give the folder that makes."
        )
    if found.weights and not found.has_config:
        return (
            f"{where} has SafeTensors weights but no {CONFIG}, which describes them. "
            "Copy the model's config.json and tokenizer files next to the weights."
        )
    if found.is_consolidated:
        return (
            f"{where} holds its weights only in Mistral's own layout (consolidated*.safetensors with params.json). "
            "llmkit reads the Hugging Face layout: model*.safetensors with config.json."
        )
    unindexed = [n for n in found.names if "/" not in n and n.endswith(".safetensors")]
    if len(unindexed) > 1:
        return f"{where} has {len(unindexed)} .safetensors files but no {INDEX}, which says what each of them holds."
    if found.pickles:
        return (
            f"{where} holds its weights only as {_some(found.pickles)}: Python pickles, which run code when they are "
            "loaded, so llmkit does not read them. If you trust the model, convert it once with transformers: "
            "AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER), the same with AutoTokenizer, and "
            "give that folder. Many repositories also have a SafeTensors version, perhaps under another revision: "
            "org/name@refs/pr/NUMBER."
        )
    if found.ggufs:
        return f"{where} holds GGUF files ({_some(found.ggufs)}), no SafeTensors checkpoint."
    if found.other_weights:
        return f"{where} holds {_some(found.other_weights)}; llmkit reads SafeTensors checkpoints and GGUF files."
    if found.has_config:
        return f"{where} has a {CONFIG} but no .safetensors weights."
    return f"{where} holds no model: neither {CONFIG} with .safetensors weights nor a .gguf file."


def _is_full_set(names: list[str]) -> bool:
    """Whether the names are all shards of one numbered set."""
    shards = [match for name in names if (match := NUMBERED_NAME.fullmatch(name))]
    if not shards or len(shards) < len(names) or len({(s["stem"], s["count"]) for s in shards}) > 1:
        return False
    return {int(s["number"]) for s in shards} == set(range(1, len(shards) + 1)) and int(shards[0]["count"]) == len(
        shards
    )


def _some(names: tuple[str, ...], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _matches(name: str, pattern: str) -> bool:
    """Like a shell: `*` does not cross a `/`."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
