"""Special tokens: which ids are BOS, EOS and so on, and which of them the tokenizer adds by itself.

The order of sources is that of gguf-py's SpecialVocab, whose results llama.cpp's users expect; the places where this
module knows more (a list of EOS ids, special_tokens_map.json, SentencePiece's own ids) come after its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmkit.convert.tokenizer.files import TokenizerFiles, steps, token_content
from llmkit.convert.tokenizer.infill import infill_tokens
from llmkit.convert.tokenizer.vocabulary import Vocabulary
from llmkit.formats.gguf import Value, boolean, u32

# Kind of token, as the JSON files call it -> GGUF key (the misspelling is the format's).
_ID_KEYS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}
_DECLARED: Final = ("bos", "eos", "unk", "sep", "pad", "mask")

# Texts that llama.cpp takes for the end of generation wherever they occur (llama_vocab::impl::load).
_ENDS: Final = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> "
    "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~["
)
_ENDS_GENERATION: Final = frozenset(_ENDS.split())


@dataclass(frozen=True, slots=True)
class Template:
    """What the post-processor of a tokenizer.json puts around a text, None where it does not say, and between two."""

    adds_first: bool | None = None
    adds_last: bool | None = None
    first: str | None = None
    last: str | None = None
    between: tuple[str, ...] = ()


def declared_contents(files: TokenizerFiles) -> list[str]:
    """Contents of all tokens that tokenizer_config.json or special_tokens_map.json call special."""
    contents: list[str] = []
    for source in (files.config, files.special_tokens_map):
        entries: list[object] = [source.get(f"{kind}_token") for kind in (*_DECLARED, "cls")]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = source.get(key)
            entries += more if isinstance(more, list) else more.values() if isinstance(more, dict) else []
        contents += [content for entry in entries if (content := token_content(entry)) is not None]
    return contents


def special_metadata(
    files: TokenizerFiles, vocabulary: Vocabulary, config: Mapping[str, Any], notes: list[str]
) -> dict[str, Value]:
    """The keys for special token ids, and whether BOS and EOS are added.

    llama.cpp's default for BOS depends on the pre-tokenizer, so that is always stated; for EOS it is "no". Ids
    outside the vocabulary are left out with a note.
    """
    template = post_processing(files.tokenizer)
    ids = {kind: id for kind in _DECLARED if (id := _declared_id(kind, files, vocabulary, config, notes)) is not None}
    if "bos" not in ids and template.first in vocabulary.ids:
        ids["bos"] = vocabulary.ids[template.first or ""]
    if template.last in vocabulary.ids and ids.get("eos") != (last := vocabulary.ids[template.last or ""]):
        if "eos" in ids:
            ids["eot"] = ids["eos"]
        ids["eos"] = last
    ids |= infill_tokens(vocabulary.ids)
    _add_more_ends(ids, files, vocabulary, config, notes)
    found = {_ID_KEYS[kind]: u32(ids[kind]) for kind in _ID_KEYS if kind in ids}
    adds_bos = _adds("bos", template.adds_first, template.first, ids, files, vocabulary, notes)
    if vocabulary.model == "gemma4" and not adds_bos:
        notes.append("the tokenizer adds no BOS token, llama.cpp always does with this kind of vocabulary")
        adds_bos = True
    found["tokenizer.ggml.add_bos_token"] = boolean(adds_bos)
    configured = files.config.get("add_eos_token")
    if template.adds_last is not None or isinstance(configured, bool) or vocabulary.adds_eos is not None:
        found["tokenizer.ggml.add_eos_token"] = boolean(
            _adds("eos", template.adds_last, template.last, ids, files, vocabulary, notes)
        )
    if template.between:
        # One that the first text does not end with anyway: llama.cpp puts it between a question and a document.
        ends = [vocabulary.ids.get(text, -1) in (ids.get("eos"), ids.get("sep")) for text in template.between]
        found["tokenizer.ggml.add_sep_token"] = boolean(sum(ends) > (template.last is not None))
    return found


def post_processing(tokenizer: Mapping[str, Any] | None) -> Template:
    """Read the post-processor of a tokenizer.json; other steps than those known add nothing."""
    found = Template()
    for step in steps((tokenizer or {}).get("post_processor"), "processors"):
        kind = step.get("type")
        if kind == "ByteLevel" and found == Template():
            found = Template(adds_first=False, adds_last=False)
        elif kind in ("RobertaProcessing", "BertProcessing"):
            first, last = _first_text(step.get("cls")), _first_text(step.get("sep"))
            found = Template(True, True, first, last, (last or "",) * (2 if kind == "RobertaProcessing" else 1))
        elif kind == "TemplateProcessing":
            single = step.get("single")
            if isinstance(single, list) and len(single) > 1:
                first, last = _special_text(single[0]), _special_text(single[-1])
                found = Template(first is not None, last is not None, first, last, _between(step.get("pair")))
    return found


def _between(pair: object) -> tuple[str, ...]:
    """The special tokens between two texts, by the template for pairs."""
    entries = pair if isinstance(pair, list) else []
    places = {
        name: place
        for place, entry in enumerate(entries)
        if isinstance(entry, dict)
        and isinstance(entry.get("Sequence"), dict)
        and isinstance(name := entry["Sequence"].get("id"), str)
    }
    inner = entries[places["A"] + 1 : places["B"]] if {"A", "B"} <= places.keys() else []
    return tuple(_special_text(entry) or "" for entry in inner)


def _special_text(entry: object) -> str | None:
    token = entry.get("SpecialToken") if isinstance(entry, dict) else None
    text = token.get("id") if isinstance(token, dict) else None
    return text if isinstance(text, str) else None


def _first_text(entry: object) -> str | None:
    return entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], str) else None


def _declared_id(
    kind: str, files: TokenizerFiles, vocabulary: Vocabulary, config: Mapping[str, Any], notes: list[str]
) -> int | None:
    """The id of one kind of special token, by its text, else by its number, else by the tokenizer file itself."""
    for source in (files.config, files.special_tokens_map):
        content = token_content(source.get(f"{kind}_token"))
        if content is not None and content in vocabulary.ids:
            return vocabulary.ids[content]
    for numbers in (config, files.generation_config):
        ids = _ids(numbers.get(f"{kind}_token_id"))
        inside = [id for id in ids if id < len(vocabulary.texts)]
        if inside:
            return inside[0]
        if ids:
            notes.append(
                f"{kind}_token_id {ids[0]} is outside the vocabulary of {len(vocabulary.texts)} and is left out"
            )
    return vocabulary.special.get(kind)


def _ids(entry: object) -> list[int]:
    """One id or a list of ids; negative ones mean "none" (Llama 1 has pad_token_id -1)."""
    entries = entry if isinstance(entry, list) else [entry]
    return [id for id in entries if isinstance(id, int) and not isinstance(id, bool) and id >= 0]


def _add_more_ends(
    ids: dict[str, int],
    files: TokenizerFiles,
    vocabulary: Vocabulary,
    config: Mapping[str, Any],
    notes: list[str],
) -> None:
    """Give further EOS ids, which llama.cpp would not know by their text, the places of EOT and EOM.

    Without this a model that ends its answers by its second EOS token goes on talking.
    """
    listed = dict.fromkeys(_ids(files.generation_config.get("eos_token_id")) + _ids(config.get("eos_token_id")))
    more = [
        id
        for id in listed
        if id < len(vocabulary.texts) and id not in ids.values() and vocabulary.texts[id] not in _ENDS_GENERATION
    ]
    for kind in ("eot", "eom"):
        if more and kind not in ids:
            ids[kind] = more.pop(0)
    if more:
        notes.append(f"GGUF has no place for these further end-of-generation tokens: {', '.join(map(str, more))}")


def _adds(
    kind: str,
    template_adds: bool | None,
    content: str | None,
    ids: Mapping[str, int],
    files: TokenizerFiles,
    vocabulary: Vocabulary,
    notes: list[str],
) -> bool:
    """Whether the tokenizer adds its BOS or EOS token."""
    configured = files.config.get(f"add_{kind}_token")
    by_default = vocabulary.adds_bos if kind == "bos" else vocabulary.adds_eos is True
    if template_adds is None:
        adds = configured if isinstance(configured, bool) else by_default
    else:
        adds = template_adds
        if isinstance(configured, bool) and configured != template_adds:
            notes.append(
                f"tokenizer_config.json says add_{kind}_token {str(configured).lower()}, but tokenizer.json "
                f"{'adds it' if template_adds else 'adds none'}: tokenizer.json is followed"
            )
    if not adds:
        return False
    if kind not in ids:
        if kind == "bos" and by_default and vocabulary.model == "llama":
            return True  # llama.cpp's default, id 1
        notes.append(f"the tokenizer is said to add a {kind.upper()} token, but no such token is known: none is added")
        return False
    if content is not None and vocabulary.ids.get(content) != ids[kind]:
        notes.append(
            f"the tokenizer adds {content!r}, which is not its {kind.upper()} token; llama.cpp cannot: none is added"
        )
        return False
    return True
