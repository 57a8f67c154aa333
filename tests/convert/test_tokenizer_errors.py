"""Broken and unknown tokenizers: one clear message, and nothing but LlmkitError for damaged files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import plan_layout
from tests.convert import trained
from tests.convert.test_tokenizer import added, small_tokenizer
from tests.convert.trained import write_json

SPLIT = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def fails(folder: Path, kind: type[LlmkitError], *fragments: str, n_vocab: int = 10, pre: str | None = None) -> None:
    with pytest.raises(kind) as caught:
        tokenizer_metadata(folder, n_vocab, {}, pre=pre)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    fails(tmp_path, FormatError, str(tmp_path), "tokenizer.json", "tokenizer.model", "copy the tokenizer files")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    fails(tmp_path, UnsupportedError, "merges.txt", "class None", "GPT2Tokenizer", "save_pretrained")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ClvpTokenizer"})
    fails(tmp_path, UnsupportedError, "class 'ClvpTokenizer'")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2TokenizerFast"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    fails(tmp_path, FormatError, "vocab.json", "entry 0 is no pair of tokens: 'a b c'")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    fails(tmp_path, FormatError, "merges.txt", "not valid UTF-8")


@pytest.mark.parametrize(
    ("changes", "kind", "fragments"),
    [
        ({"model": {"vocab": {"a": 0, "b": 0}}}, FormatError, ["id 0 belongs to both 'a' and 'b'"]),
        ({"model": {"vocab": {"a": -1}}}, FormatError, ["'a': -1 is not a token id"]),
        ({"model": {"vocab": {"a": 1.5}}}, FormatError, ["1.5 is not a token id"]),
        ({"model": {"vocab": {"a": True}}}, FormatError, ["True is not a token id"]),
        ({"model": {"vocab": {"a": 10**12}}}, FormatError, ["is not a token id"]),
        ({"model": {"vocab": {"a": 10}, "merges": []}}, UnsupportedError, ["token 10 ('a')", "which has 10"]),
        ({"model": {"vocab": ["a"]}}, FormatError, ["model.vocab: expected an object, found an array"]),
        ({"model": {"merges": None}}, FormatError, ["model.merges: expected an array, found null"]),
        ({"model": {"merges": ["a b c"]}}, FormatError, ["entry 0 is no pair of tokens: 'a b c'"]),
        ({"model": {"merges": [["a", "b"], ["a"]]}}, FormatError, ["entry 1 is no pair"]),
        ({"model": {"merges": [["a", "c"]]}}, FormatError, ["entry 0 needs 'ac'", "not in the vocabulary"]),
        ({"model": {"merges": [["z", "a"]]}}, FormatError, ["entry 0 needs 'z'"]),
        ({"model": {"end_of_word_suffix": "</w>"}}, UnsupportedError, ["end_of_word_suffix is '</w>'"]),
        ({"model": {"type": "WordLevel"}}, UnsupportedError, ["type WordLevel"]),
        ({"model": {"byte_fallback": True}, "pre_tokenizer": SPLIT}, UnsupportedError, ["pre_tokenizer", "`▁`"]),
        ({"added_tokens": [added(2, "<s>")]}, FormatError, ["id 2 belongs to both 'c' and the added token '<s>'"]),
        ({"added_tokens": [added(7, "a")]}, FormatError, ["'a' has id 7, and 0 in the vocabulary"]),
        ({"added_tokens": [added(7, "x"), added(7, "y")]}, FormatError, ["id 7 belongs to both 'x' and 'y'"]),
        ({"added_tokens": [{"id": 7}]}, FormatError, ["added token 7"]),
        ({"added_tokens": ["<s>"]}, FormatError, ["expected an object with a content"]),
        ({"added_tokens": {"a": 1}}, FormatError, ["added_tokens: expected an array"]),
        ({"added_tokens": [added(7, "\ud800")]}, FormatError, ["token 7 is not valid Unicode"]),
        ({"pre_tokenizer": None}, UnsupportedError, ["no ByteLevel step", "--tokenizer-pre NAME"]),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}},
            UnsupportedError,
            ["splits by x+", "llama-bpe", "--tokenizer-pre NAME"],
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, SPLIT]}},
            UnsupportedError,
            ["splits by on bytes: x+"],
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTES]}},
            UnsupportedError,
            ["splits by Removed: x+"],
        ),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, UnsupportedError, ["add_prefix_space"]),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, BYTES]}},
            UnsupportedError,
            ["splits by [!-/"],
        ),
        ({"normalizer": {"type": "Lowercase"}}, UnsupportedError, ["normalises text (Lowercase)"]),
    ],
)  # fmt: skip
def test_broken_tokenizer_json(
    changes: dict[str, Any], kind: type[LlmkitError], fragments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_tokenizer(**changes)))
    fails(tmp_path, kind, str(path), *fragments)


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", "[]", "expected a JSON object, found an array"),
        ("tokenizer.json", "{}", "has no tokenizer model"),
        ("tokenizer.json", '{"model": 3}', "has no tokenizer model"),
        ("tokenizer.json", "[" * 100_000, "nested too deeply"),
        ("tokenizer_config.json", "\xff", ""),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "'x' is not a token id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', ""),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "expected an object"),
        ("added_tokens.json", '{"a": "b"}', "'b' is not a token id"),
        ("special_tokens_map.json", "nul", "not valid JSON"),
        ("generation_config.json", '{"a": 1, "a": 2}', "occurs twice"),
    ],
)
def test_broken_files(name: str, text: str, fragment: str, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", small_tokenizer())
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    if not fragment and text != "\xff":
        tokenizer_metadata(tmp_path, 10, {})
        return
    fails(tmp_path, FormatError, str(tmp_path / name), fragment)


def test_unknown_override(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", small_tokenizer())
    fails(tmp_path, UnsupportedError, "--tokenizer-pre llama9", "llama-bpe", pre="llama9")


def test_template_files(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", small_tokenizer())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    fails(tmp_path, FormatError, "chat_template.jinja", "not valid UTF-8")
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (5 << 20))
    fails(tmp_path, FormatError, "chat template of at most")
    (tmp_path / "chat_template.jinja").unlink()
    write_json(tmp_path / "chat_template.json", [])
    fails(tmp_path, FormatError, "chat_template.json", "expected a JSON object")


@pytest.mark.parametrize("model_type", ["char", "word"])
def test_other_sentencepiece_models(model_type: str, tmp_path: Path) -> None:
    vocab_size = {"char": 60, "word": 500}[model_type]
    spm = trained.train_sentencepiece(
        tmp_path,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        split_digits=False,
        byte_fallback=False,
    )
    fails(tmp_path, UnsupportedError, "tokenizer.model", "by BPE or Unigram only", n_vocab=spm.vocab_size())


def test_sentencepiece_larger_than_the_embedding(tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(tmp_path)
    fails(tmp_path, UnsupportedError, f"token {spm.vocab_size() - 1}", "another model", n_vocab=spm.vocab_size() - 1)


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"", "it has no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x0a\x05ab", "wants 5 bytes, 2 are left"),
        (b"\x0a\x02\x0a\x05", "wants 5 bytes"),
        (b"\x0a\x04\x0a\x02\xff\xff", "not valid UTF-8"),
        (b"\x0a\x07\x0a\x00\x15\x00\x00\xc0\x7f", "has score nan"),
        (b"\x0a\x04\x0a\x00\x18\x09", "has type 9"),
        (b"\x08\x01", "holds a varint, expected bytes"),
        (b"\x00", "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x80" * 11, "more than ten bytes"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "wants 9,223,372,036,854,775,807 bytes"),
    ],
)
def test_broken_sentencepiece(data: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    fails(tmp_path, FormatError, str(tmp_path / "tokenizer.model"), fragment)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all parts of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


WHOLE = {
    "tokenizer": small_tokenizer(
        post_processor={"type": "Sequence", "processors": [BYTES, {"type": "TemplateProcessing", "single": [{}, {}]}]},
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    ),
    "metaspace": small_tokenizer(
        model={
            "byte_fallback": True,
            "vocab": {"<unk>": 0, "<0x0A>": 1, "▁": 2, "a": 3, "▁a": 4},
            "merges": ["▁ a"],
            "unk_token": "<unk>",
        },
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        added_tokens=[added(5, "<s>")],
    ),
    "tokenizer_config": {
        "bos_token": {"content": "<s>"},
        "add_bos_token": True,
        "added_tokens_decoder": {"7": {"content": "<s>", "special": True}},
        "chat_template": [{"name": "default", "template": "{{ x }}"}],
        "additional_special_tokens": ["<s>"],
    },
    "special_tokens_map": {"eos_token": "</s>"},
    "generation_config": {"eos_token_id": [8]},
    "added_tokens": {"<tool>": 9},
}
PLACES = [(name, place) for name, whole in WHOLE.items() for place in places(whole)]


@settings(max_examples=400)
@given(where=st.sampled_from(PLACES), new=JSON, metaspace=st.booleans())
def test_damaged_json(where: tuple[str, tuple[Any, ...]], new: Any, metaspace: bool, tmp_path: Path) -> None:
    name, place = where
    damaged = WHOLE | {name: replaced(WHOLE[name], place, new)}
    main = "metaspace" if metaspace or name == "metaspace" else "tokenizer"
    for file in ("tokenizer_config", "special_tokens_map", "generation_config", "added_tokens"):
        write = damaged[file]
        (tmp_path / f"{file}.json").write_text(json.dumps(write))
    (tmp_path / "tokenizer.json").write_text(json.dumps(damaged[main]))
    try:
        metadata = tokenizer_metadata(tmp_path, 12, {})
    except LlmkitError:
        return
    plan_layout(metadata, [])


@pytest.fixture(scope="module")
def small_spm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("spm")
    trained.train_sentencepiece(folder, vocab_size=400)
    return (folder / "tokenizer.model").read_bytes()


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_damaged_sentencepiece(seed: int, small_spm: bytes, tmp_path: Path) -> None:
    rng = random.Random(seed)
    data = bytearray(small_spm)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.5:
            data[at] = rng.randrange(256)
        elif kind < 0.7:
            del data[at : at + rng.randint(1, 20)]
        elif kind < 0.9:
            data[at:at] = rng.randbytes(rng.randint(1, 12))
        else:
            del data[at + 1 :]
    (tmp_path / "tokenizer.model").write_bytes(data)
    try:
        metadata = tokenizer_metadata(tmp_path, 400, {})
    except LlmkitError:
        return
    plan_layout(metadata, [])
