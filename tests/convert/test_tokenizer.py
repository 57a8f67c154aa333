"""Tokenizer metadata: against the packaged SmolLM2; special tokens, flags, holes, merges and templates by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.bytelevel import byte_alphabet
from llmkit.convert.tokenizer.recognise import unreachable_tokens
from llmkit.formats.gguf import Value, ValueType
from tests.convert import trained
from tests.convert.trained import SPECIAL, byte_level, split, write_json
from tests.convert.vocabfile import LlamaVocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
P = "tokenizer.ggml."


def plain(metadata: dict[str, Value]) -> dict[str, Any]:
    return {key: value.data for key, value in metadata.items()}


def small_tokenizer(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json of ten tokens; `changes` replace parts of it, `model` parts of its model."""
    vocab = {text: id for id, text in enumerate(["a", "b", "c", "Ġ", "ab", "Ġab", "abc"])}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer: dict[str, Any] = {
        "added_tokens": [added(7, "<s>"), added(8, "</s>"), added(9, "<tool>", special=False)],
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "Ġ ab", "ab c"]},
    }
    tokenizer["model"] |= changes.pop("model", {})
    return tokenizer | changes


def byte_vocabulary() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def added(id: int, content: str, *, special: bool = True, **flags: Any) -> dict[str, Any]:
    return {"id": id, "content": content, "special": special, "normalized": False, "lstrip": False, **flags}


def template(*single: str) -> dict[str, Any]:
    """A TemplateProcessing whose `single` is these tokens, "$A" standing for the text."""
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}} if text == "$A" else {"SpecialToken": {"id": text, "type_id": 0}}
        for text in single
    ]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}


def read(folder: Path, n_vocab: int = 10, /, config: Any = None, **files: Any) -> tuple[dict[str, Any], list[str]]:
    """Write `files` (name without .json -> content), then read the tokenizer; with the notes."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    notes: list[str] = []
    return plain(tokenizer_metadata(folder, n_vocab, config or {}, notes=notes)), notes


def test_smollm2_equals_the_packaged_file(smollm2_checkpoint: Path, smollm2_gguf: Path) -> None:
    """The packaged file came from its authors' checkpoint and llama.cpp's converter."""
    config = json.loads((smollm2_checkpoint / "config.json").read_text())
    ours = tokenizer_metadata(smollm2_checkpoint, config["vocab_size"], config)
    theirs = {name: field for name, field in GGUFReader(smollm2_gguf).fields.items() if name.startswith("tokenizer.")}
    for name, field in theirs.items():
        expected = field.contents()
        assert ours[name].data == (tuple(expected) if isinstance(expected, list) else expected), name
        types = [ours[name].type, *([ours[name].element_type] if ours[name].element_type is not None else [])]
        assert types == [ValueType(int(kind)) for kind in field.types], name
    assert set(ours) - set(theirs) == set()


def test_pairs_and_strings_spell_the_same_merges(tmp_path: Path) -> None:
    strings, _ = read(tmp_path / "a", tokenizer=small_tokenizer())
    pairs, _ = read(tmp_path / "b", tokenizer=small_tokenizer(model={"merges": [["a", "b"], ["Ġ", "ab"], ["ab", "c"]]}))
    assert strings == pairs
    assert strings[P + "merges"] == ("a b", "Ġ ab", "ab c")


def test_types_and_holes(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer["added_tokens"] += [
        added(12, "<|x|>", special=False),
        added(13, "[PAD10]"),
        added(14, "▁t", special=False),
    ]
    found, notes = read(tmp_path, 16, tokenizer=tokenizer)
    assert notes == []
    assert found[P + "tokens"][7:] == (
        "<s>",
        "</s>",
        "<tool>",
        "[PAD10]_",
        "[PAD11]",
        "<|x|>",
        "[PAD10]",
        " t",
        "[PAD15]",
    )
    assert found[P + "token_type"] == (
        *[NORMAL] * 7, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED, CONTROL, CONTROL, USER_DEFINED, UNUSED,
    )  # fmt: skip


def test_added_tokens_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    found, notes = read(
        tmp_path, 9, tokenizer=small_tokenizer(), tokenizer_config={"pad_token": "<tool>", "eos_token": "</s>"}
    )
    assert len(found[P + "tokens"]) == 9
    assert P + "padding_token_id" not in found
    assert found[P + "eos_token_id"] == 8
    assert notes == ["1 added tokens have no row in the embedding of 9 and are left out: 9 '<tool>'"]


def test_repeated_texts_do_not_reach_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp aborts the process when two tokens share a text."""
    spm = trained.train_sentencepiece(tmp_path)
    place = next(id for id in range(400, 1200) if spm.id_to_piece(id).isalpha())
    word = spm.id_to_piece(place)
    n = spm.vocab_size()
    notes: list[str] = []
    write_json(tmp_path / "added_tokens.json", {word: n})
    metadata = tokenizer_metadata(tmp_path, n + 1, {}, notes=notes)
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.n_tokens == n + 1
    assert (metadata[P + "tokens"].data[place], metadata[P + "tokens"].data[n]) == (word, f"[UNUSED{n}]")
    assert metadata[P + "token_type"].data[n] == UNUSED
    assert notes == [f"token {n} repeats the text of token {place}, {word!r}; it is marked as unused"]


def test_merges_that_llama_cpp_would_read_otherwise(tmp_path: Path) -> None:
    """Of a repeated merge tokenizers ranks the last; parts with spaces never occur in byte-level text."""
    vocab = {text: id for id, text in enumerate(["a", "b", "c", "ab", "bc", " ", " a"])}
    merges = [["a", "b"], [" ", "a"], ["b", "c"], ["a", "b"]]
    tokenizer = small_tokenizer(model={"vocab": vocab, "merges": merges}, added_tokens=[])
    found, notes = read(tmp_path, 7, tokenizer=tokenizer)
    assert found[P + "merges"] == ("b c", "a b")
    assert notes == [
        "1 repeated merges are left out",
        "1 merges contain a space, which no text does by then, and are left out",
    ]
    hf = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert hf.encode("abc").tokens == ["a", "bc"]


def test_special_ids_come_from_contents_then_numbers(tmp_path: Path) -> None:
    tokenizer_config = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "unk_token": None, "mask_token": "Ġab"}
    found, notes = read(
        tmp_path,
        config={"bos_token_id": 0, "eos_token_id": [8, 9], "pad_token_id": -1, "sep_token_id": True},
        tokenizer=small_tokenizer(),
        tokenizer_config=tokenizer_config,
        special_tokens_map={"bos_token": "</s>", "unk_token": {"content": "<tool>"}},
        generation_config={"eos_token_id": [8, 9, 0]},
    )
    ids = {key.removeprefix(P): value for key, value in found.items() if key.endswith("_token_id")}
    assert ids == {
        "bos_token_id": 7,
        "eos_token_id": 8,
        "eot_token_id": 0,  # generation ends there too; 9 is the unknown token already
        "unknown_token_id": 9,
        "mask_token_id": 5,
    }
    assert found[P + "token_type"][5] == CONTROL  # declared special, though trained
    assert notes == []


def test_further_eos_ids_end_generation(tmp_path: Path) -> None:
    hf = trained.train_byte_level(tmp_path, byte_level(split(trained.LLAMA3)), ignore_merges=True, n_tokens=400)
    ends = [hf.token_to_id(SPECIAL[1]), hf.token_to_id(SPECIAL[2]), hf.token_to_id(SPECIAL[3]), 5]
    write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, notes=notes)
    assert notes == ["GGUF has no place for these further end-of-generation tokens: 5"]
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert all(vocabulary.ends_generation(id) for id in ends[:3])
        assert vocabulary.ends_generation(hf.token_to_id("<|eot_id|>"))
        assert not vocabulary.ends_generation(hf.token_to_id(SPECIAL[0]))


BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("post_processor", "tokenizer_config", "expected"),
    [
        (None, BOS_EOS, (False, None)),
        (None, {**BOS_EOS, "add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"type": "ByteLevel"}, {**BOS_EOS, "add_bos_token": True}, (False, False)),
        (template("<s>", "$A"), BOS_EOS, (True, False)),
        (template("<s>", "$A"), {**BOS_EOS, "add_bos_token": False}, (True, False)),
        (template("<s>", "$A", "</s>"), BOS_EOS, (True, True)),
        (template("$A", "</s>"), BOS_EOS, (False, True)),
        (template("$A"), {**BOS_EOS, "add_bos_token": True}, (True, None)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<s>", "$A")]}, BOS_EOS, (True, False)),
        (template("<tool>", "$A"), BOS_EOS, (False, False)),
        (template("<s>", "$A"), {}, (True, False)),
        ({"type": "RobertaProcessing", "cls": ["<s>", 7], "sep": ["</s>", 8]}, BOS_EOS, (True, True)),
        (None, {"add_bos_token": True}, (False, None)),
    ],
)  # fmt: skip
def test_flags(post_processor: Any, tokenizer_config: Any, expected: tuple[bool, bool | None], tmp_path: Path) -> None:
    found, _ = read(
        tmp_path, tokenizer=small_tokenizer(post_processor=post_processor), tokenizer_config=tokenizer_config
    )
    assert (found[P + "add_bos_token"], found.get(P + "add_eos_token")) == expected
    if expected[0]:
        assert found[P + "bos_token_id"] == 7


def test_a_template_that_ends_otherwise_names_the_eos_token(tmp_path: Path) -> None:
    """The text ends with <tool>; what was called EOS becomes the end of a turn, as in llama.cpp's converter."""
    found, _ = read(
        tmp_path, tokenizer=small_tokenizer(post_processor=template("$A", "<tool>")), tokenizer_config=BOS_EOS
    )
    assert (found[P + "eos_token_id"], found[P + "eot_token_id"], found[P + "add_eos_token"]) == (9, 8, True)


def test_sentencepiece_with_files_beside_it(tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(tmp_path)
    n = spm.vocab_size()
    found, notes = read(
        tmp_path,
        n + 5,
        added_tokens={"<turn>": n, "<fn>": n + 1},
        tokenizer_config={
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                str(n): {"content": "<turn>", "special": True},
                str(n + 9): {"content": "<far>", "special": True},
            },
            "add_prefix_space": False,
            "add_bos_token": False,
            "eos_token": "<turn>",
        },
        tokenizer={"added_tokens": [added(1, "<s>"), added(n + 3, "<new>", special=False)], "model": {}},
    )
    assert found[P + "model"] == "llama"
    assert found[P + "tokens"][n:] == ("<turn>", "<fn>", f"[PAD{n + 2}]", "<new>", f"[PAD{n + 4}]")
    assert found[P + "token_type"][n:] == (CONTROL, USER_DEFINED, UNUSED, USER_DEFINED, UNUSED)
    assert found[P + "token_type"][:3] == (CONTROL, CONTROL, CONTROL)
    assert found[P + "token_type"][3:259] == (BYTE,) * 256
    assert found[P + "scores"][n:] == (-1000.0, -1000.0, -10000.0, -1000.0, -10000.0)
    assert found[P + "scores"][300] == spm.get_score(300)
    assert (found[P + "bos_token_id"], found[P + "eos_token_id"], found[P + "unknown_token_id"]) == (1, n, 0)
    assert (found[P + "add_bos_token"], found[P + "add_space_prefix"]) == (False, False)
    assert notes == [f"1 added tokens have no row in the embedding of {n + 5} and are left out: {n + 9} '<far>'"]


def test_code_llama_infill_tokens(tmp_path: Path) -> None:
    pieces = ["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"]
    spm = trained.train_sentencepiece(tmp_path)
    n = spm.vocab_size()
    decoder = {str(n + i): {"content": text, "special": True} for i, text in enumerate(pieces)}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with LlamaVocabulary(tokenizer_metadata(tmp_path, n + 4, {}), tmp_path / "v.gguf") as vocabulary:
        special = vocabulary.special()
        assert [special[kind] for kind in ("fim_pre", "fim_mid", "fim_suf", "eot")] == [n, n + 1, n + 2, n + 3]


QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<repo_name>", "<file_sep>")
CODEGEMMA = (*QWEN[:3], None, None, "<|file_separator|>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", None, None, None)


@pytest.mark.parametrize(
    "texts", [QWEN, STARCODER, CODEGEMMA, DEEPSEEK], ids=["qwen", "starcoder", "gemma", "deepseek"]
)
def test_infill_tokens(texts: tuple[str | None, ...], tmp_path: Path) -> None:
    """All kinds that are there reach llama.cpp, which also ends generation at the last three."""
    tokenizer = small_tokenizer(model={"vocab": byte_vocabulary(), "merges": []}, added_tokens=[])
    kinds = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
    expected = {kind: 256 + i for i, kind in enumerate(kinds) if texts[i] is not None}
    tokenizer["added_tokens"] = [added(256 + i, text) for i, text in enumerate(texts) if text is not None]
    write_json(tmp_path / "tokenizer.json", tokenizer)
    metadata = tokenizer_metadata(tmp_path, 262, {})
    found = {key.removeprefix(P).removesuffix("_token_id"): value.data for key, value in metadata.items()}
    assert {kind: id for kind, id in found.items() if kind.startswith("fim")} == expected
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        special = vocabulary.special()
        assert {kind: special[kind] for kind in kinds} == {kind: expected.get(kind, -1) for kind in kinds}
        for kind, id in expected.items():
            assert vocabulary.ends_generation(id) == (kind in kinds[3:])


def test_no_infill_without_all_its_markers(tmp_path: Path) -> None:
    """A repository name alone, as models that saw code have it, ends no generation."""
    tokens = [added(7, "<fim_prefix>"), added(8, "<fim_suffix>"), added(9, "<repo_name>")]
    found, _ = read(tmp_path, tokenizer=small_tokenizer(added_tokens=tokens))
    assert not [key for key in found if "fim" in key]


def test_sentencepiece_notes_what_llama_cpp_does_not_do(tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(
        tmp_path,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        user_defined_symbols=["<sep>"],
    )
    _, notes = read(tmp_path, spm.vocab_size())
    assert [note.split(",")[0] for note in notes] == [
        "tokenizer.model normalises text (nmt_nfkc)",
        "tokenizer.model joins repeated spaces",
        "llama.cpp puts a space before text that follows one of 1 user-defined pieces (such as '<sep>')",
    ]


def test_a_list_of_base64_tokens_beside_tokenizer_json(tmp_path: Path) -> None:
    """Llama 3 repositories have a tokenizer.model that is no SentencePiece model."""
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    found, notes = read(tmp_path, tokenizer=small_tokenizer())
    assert found[P + "model"] == "gpt2"
    assert notes == ["tokenizer.model is no SentencePiece model; tokenizer.json is taken"]


def test_ignore_merges_that_no_pre_tokenizer_has(tmp_path: Path) -> None:
    """It makes no difference while merges build every token; otherwise a note says so."""
    hf = trained.train_byte_level(tmp_path, byte_level(use_regex=True), ignore_merges=True, n_tokens=400)
    assert unreachable_tokens(hf.get_vocab(with_added_tokens=False), []) != []
    _, notes = read(tmp_path, hf.get_vocab_size())
    assert notes == []
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    _, notes = read(tmp_path, hf.get_vocab_size(), tokenizer=tokenizer)
    (note,) = notes
    assert "1 tokens that no merge builds" in note


def test_byte_fallback_of_a_byte_level_tokenizer_means_nothing(tmp_path: Path) -> None:
    found, notes = read(tmp_path, tokenizer=small_tokenizer(model={"byte_fallback": True}))
    assert (found[P + "model"], notes) == ("gpt2", [])


def test_override_of_the_pre_tokenizer(tmp_path: Path) -> None:
    strange = small_tokenizer(pre_tokenizer={"type": "Whitespace"}, normalizer={"type": "Lowercase"})
    write_json(tmp_path / "tokenizer.json", strange)
    notes: list[str] = []
    assert plain(tokenizer_metadata(tmp_path, 10, {}, pre="llama-bpe", notes=notes))[P + "pre"] == "llama-bpe"
    assert notes == ["the tokenizer normalises text (Lowercase), llama.cpp does not: tokens differ for text it changes"]


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {}, {}),
        ({}, {"chat_template": "{{ a }}"}, {"tokenizer.chat_template": "{{ a }}"}),
        ({"chat_template.jinja": "{{ é }}"}, {}, {"tokenizer.chat_template": "{{ é }}"}),
        ({"chat_template.jinja": "{{ f }}"}, {"chat_template": "{{ a }}"}, {"tokenizer.chat_template": "{{ f }}"}),
        ({"chat_template.json": '{"chat_template": "{{ j }}"}'}, {}, {"tokenizer.chat_template": "{{ j }}"}),
        (
            {},
            {
                "chat_template": [
                    {"name": "default", "template": "D"},
                    {"name": "tool use", "template": "T"},
                    {"name": 3},
                ]
            },
            {
                "tokenizer.chat_template": "D",
                "tokenizer.chat_template.tool_use": "T",
                "tokenizer.chat_templates": ("tool_use",),
            },
        ),
        (
            {"chat_template.jinja": "D", "additional_chat_templates/rag.jinja": "R"},
            {},
            {
                "tokenizer.chat_template": "D",
                "tokenizer.chat_template.rag": "R",
                "tokenizer.chat_templates": ("rag",),
            },
        ),
        ({}, {"chat_template": 5}, {}),
        ({"chat_template.jinja": ""}, {}, {}),
    ],
)
def test_chat_templates(files: dict[str, str], config: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found, notes = read(tmp_path, tokenizer=small_tokenizer(), tokenizer_config=config)
    assert {key: value for key, value in found.items() if "chat" in key} == expected
    assert bool(notes) == (config.get("chat_template") == 5 or (len(files) > 0 and "chat_template" in config))
