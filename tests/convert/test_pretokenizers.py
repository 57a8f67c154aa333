"""Pre-tokenizers: the published ones by their rules, others by their tokens, token for token against `tokenizers`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.pretokenizer import ACCEPTED_NAMES, KNOWN, OTHERS, WITHOUT_BOS, candidates, named
from llmkit.convert.tokenizer.prove import try_pre_tokenizers
from llmkit.convert.tokenizer.splitting import canonical_regex
from llmkit.convert.tokenizer.stages import ON_BYTES, Splitter, stages_of, steps_of
from llmkit.errors import DependencyError, UnsupportedError
from llmkit.runtimes.tokenizing import LlamaCppJudge
from tests.convert import trained
from tests.convert.published import PUBLISHED, Published
from tests.convert.trained import SPECIAL, byte_level, split, write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, texts_with

PRE = "tokenizer.ggml.pre"

# Those of the table that are not among the published ones, by the table's own stages.
FURTHER = {
    known.name: Published(byte_level(*map(split, known.stages)), known.name, known.ignore_merges)
    for known in KNOWN
    if known.name not in {published.name for published in PUBLISHED.values()} | {"poro-chat"}
    and not any(stage.startswith(ON_BYTES) for stage in known.stages)
}
CASES = PUBLISHED | FURTHER


def has_marks_or_case(text: str) -> bool:
    """What llama.cpp's expressions for Tekken and GPT-4o do not tell apart."""
    return any(
        (category := unicodedata.category(character)).startswith("M")
        or (not character.isascii() and category in ("Lu", "Lt", "Ll"))
        or not unicodedata.is_normalized("NFC", character)
        or category in ("Cn", "Co")
        for character in text
    )


def has_wide_spaces(text: str) -> bool:
    return any(character.isspace() and not character.isascii() for character in text)


def has_mixed_words(text: str) -> bool:
    """Numbers that touch letters, numbers that are no digits, capitals inside of words."""
    digits = re.search(r"[^\W\d]\d|\d[^\W\d]", text)
    return bool(digits) or any((c.isnumeric() and not c.isdecimal()) or c.isupper() for c in text)


def has_marks_or_capitals(text: str) -> bool:
    return has_marks_or_case(text) or any(character.isupper() for character in text)


def has_carriage_returns(text: str) -> bool:
    return "\r" in text


CONCERNED: dict[str, Callable[[str], bool]] = {
    "gpt-4o": has_marks_or_case,
    "tekken": has_marks_or_case,
    "kimi-k2": has_marks_or_capitals,
    "tiny_aya": has_mixed_words,
    "laguna": has_carriage_returns,
    "deepseek-llm": has_wide_spaces,
    "deepseek-coder": has_wide_spaces,
}


def train(folder: Path, case: Published, n_tokens: int = 6000) -> Any:
    hf = trained.train_byte_level(folder, case.pre_tokenizer, ignore_merges=case.ignore_merges, n_tokens=n_tokens)
    if case.cleans is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        write_json(folder / "tokenizer_config.json", config | {"clean_up_tokenization_spaces": case.cleans})
    return hf


def differences(texts: Sequence[str], vocabulary: LlamaVocabulary, hf: Any) -> list[str]:
    return [text for text in texts if vocabulary.encode(text, add_special=True) != hf.encode(text).ids]


@pytest.mark.parametrize("label", CASES)
def test_published(label: str, tmp_path: Path) -> None:
    case = CASES[label]
    hf = train(tmp_path, case)
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, notes=notes)
    assert metadata[PRE].data == case.name
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        different = differences([*plain_texts(), *texts_with([SPECIAL[0], SPECIAL[4]])], vocabulary, hf)
        assert vocabulary.adds_bos()
        assert vocabulary.special()["bos"] == hf.token_to_id(SPECIAL[0])
        assert vocabulary.special()["eos"] == hf.token_to_id(SPECIAL[1])
        assert vocabulary.special()["eot"] == hf.token_to_id("<|eot_id|>")
    if case.name in CONCERNED:
        (deviation,) = {known.deviation for known in KNOWN if known.name == case.name}
        assert notes == [f"llama.cpp's pre-tokenizer {case.name} is approximate: tokens may differ for {deviation}"]
        assert different
        assert not [text for text in different if not CONCERNED[case.name](text)]
    else:
        assert notes == []
        assert different == []


def test_runs_of_spaces_as_added_tokens(tmp_path: Path) -> None:
    """GPT-NeoX and Phi-2 have them; the former also normalises text, which llama.cpp does not."""
    hf = trained.train_byte_level(tmp_path, PUBLISHED["gpt2"].pre_tokenizer, template=False)
    hf.normalizer = normalizers.NFC()
    runs = [character * n for character, longest in ((" ", 24), ("\t", 9)) for n in range(longest, 1, -1)]
    hf.add_tokens([AddedToken(run, normalized=True) for run in runs])
    hf.save(str(tmp_path / "tokenizer.json"))
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, notes=notes)
    assert [note.partition(",")[0] for note in notes] == ["the tokenizer normalises text (NFC)"]
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        different = differences(plain_texts(), vocabulary, hf)
        assert vocabulary.encode(" " * 30) == hf.encode(" " * 30).ids
        assert len(vocabulary.encode(" " * 30)) == 2
    assert different
    assert not [text for text in different if unicodedata.is_normalized("NFC", text)]


def test_the_table_has_one_spelling_and_known_names() -> None:
    assert {known.name for known in KNOWN} | set(OTHERS) <= ACCEPTED_NAMES
    assert set(WITHOUT_BOS) | set(WITHOUT_BOS.values()) <= ACCEPTED_NAMES
    for known in KNOWN:
        assert [canonical_regex(stage) for stage in known.stages] == list(known.stages)
    assert {known.name for known in KNOWN if known.deviation} == set(CONCERNED)


def test_stages_can_be_written_down() -> None:
    for known in KNOWN:
        steps = steps_of(known.stages)
        assert stages_of({"type": "Sequence", "pretokenizers": steps}) == known.stages


def test_other_names_for_the_same() -> None:
    assert [known.name for name in ("refact", "olmo", "glm4", "falcon") if (known := named(name))] == [
        "starcoder", "gpt-2", "llama-bpe", "falcon",
    ]  # fmt: skip
    assert named("superbpe") is None


@pytest.mark.parametrize(
    ("spelling", "other"),
    [
        (r"\s++(?!\S)|x", r"\s+(?!\S)|x"),  # a possessive quantifier before a condition
        (r"[\r\n]+|\s++$|\s+(?!\S)|\s+", r"[\r\n]+|\s+(?!\S)|\s+"),  # line ends at the end of the text
        ("(?i:'s|'t|'re|'ve|'m|'ll)|x", "(?i:'s|'t|'re|'ve|'m|'ll|'d)|x"),  # one contraction is missing
    ],
)
def test_what_matches_otherwise_keeps_its_spelling(spelling: str, other: str) -> None:
    assert canonical_regex(spelling) != canonical_regex(other)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("name", "ignore_merges"), [("llama-bpe", True), ("smaug-bpe", False)])
def test_no_bos_token(bos: bool, name: str, ignore_merges: bool, tmp_path: Path) -> None:
    """Under its usual name llama.cpp would take token 11 for BOS."""
    trained.train_byte_level(
        tmp_path, byte_level(split(trained.LLAMA3)), ignore_merges=ignore_merges, n_tokens=400, template=False
    )
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": SPECIAL[1], "bos_token": SPECIAL[0] if bos else None})
    metadata = tokenizer_metadata(tmp_path, 405, {})
    assert metadata[PRE].data == (name if bos else WITHOUT_BOS[name])
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.special()["bos"] == (400 if bos else -1)
        assert not vocabulary.adds_bos()
    assert tokenizer_metadata(tmp_path, 405, {}, pre=name)[PRE].data == name


# Rules in no table that split as a known one does: Qwen 2's, with the alternatives for spaces in another order.
REORDERED = trained.QWEN2.replace(r"\s*[\r\n]+|\s+(?!\S)|\s+", r"\s*[\r\n]+|\s+(?=\s|\z)|\s")


def test_an_unknown_rule_with_known_tokens(tmp_path: Path) -> None:
    hf = trained.train_byte_level(tmp_path, byte_level(split(REORDERED)))
    with pytest.raises(UnsupportedError, match=r"knows no pre-tokenizer of llama\.cpp that splits by"):
        tokenizer_metadata(tmp_path, hf.get_vocab_size(), {})
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, judge=LlamaCppJudge(), notes=notes)
    assert metadata[PRE].data == "qwen2"
    (note,) = notes
    assert "llama.cpp's pre-tokenizer qwen2 gives the same tokens on all" in note
    assert REORDERED[-20:] in note
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert differences(plain_texts(), vocabulary, hf) == []


def test_a_rule_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    """Every vowel begins a new piece: nothing comes near, and the message shows where."""
    hf = trained.train_byte_level(tmp_path, byte_level(split(r"[aeiou][^aeiou]*")))
    with pytest.raises(UnsupportedError) as caught:
        tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, judge=LlamaCppJudge())
    message = str(caught.value)
    assert "no pre-tokenizer of llama.cpp gives the tokens of this one, which splits by [aeiou][^aeiou]*." in message
    found = re.findall(r"([\w.-]+) differs on (\d+) of (\d+) texts, such as '", message)
    assert len(found) == 3
    assert all(0 < int(n) <= int(total) and name in ACCEPTED_NAMES for name, n, total in found)
    assert "--tokenizer-pre NAME" in message
    assert tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, pre=found[0][0])[PRE].data == found[0][0]


def test_rules_that_split_alike_for_one_vocabulary(tmp_path: Path) -> None:
    """The vocabulary has no merges across the cuts that llama.cpp does not make: tokens count, not rules."""
    hf = trained.train_byte_level(
        tmp_path, byte_level(split(r"[\r\n]+"), pre_tokenizers.Split("ſ", "isolated"), split(trained.LLAMA3))
    )
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, judge=LlamaCppJudge())
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        different = differences(plain_texts(), vocabulary, hf)
    assert different == []


class NoJudge:
    """A machine without the two libraries."""

    def reference(self, tokenizer_json: str, texts: Sequence[str]) -> list[list[int]]:
        raise DependencyError("tokenizers", "llama", "comparing tokens")

    def engine(self, gguf: bytes, texts: Sequence[str]) -> list[list[int]]:
        raise AssertionError("not reached")


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    hf = trained.train_byte_level(tmp_path, byte_level(split(REORDERED)), n_tokens=400)
    with pytest.raises(UnsupportedError, match=r"cannot look for one by its tokens: .*llmkit\[llama\].*-pre"):
        tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, judge=NoJudge())


def test_rules_that_tokenizers_refuses(tmp_path: Path) -> None:
    trained.train_byte_level(tmp_path, byte_level(split("x")), n_tokens=400)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(("
    write_json(tmp_path / "tokenizer.json", tokenizer)
    with pytest.raises(UnsupportedError, match="does not run this tokenizer"):
        tokenizer_metadata(tmp_path, 405, {}, judge=LlamaCppJudge())


def test_approximations_are_measured(tmp_path: Path) -> None:
    hf = trained.train_byte_level(tmp_path, byte_level(split(trained.GPT4O)))
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, judge=LlamaCppJudge(), notes=notes)
    assert metadata[PRE].data == "gpt-4o"
    (note,) = notes
    counts = re.search(
        r"\((\d+) of \d+ hard texts differ\); --tokenizer-pre granite-embed-multi-97m, .* differs on (\d+)$", note
    )
    assert counts is not None
    assert 0 < int(counts[2]) < int(counts[1])


def test_part_of_a_vocabulary_gives_the_tokens_of_the_whole(tmp_path: Path) -> None:
    """The comparison runs on a part; all texts of the other tests ran on whole vocabularies, with the same outcome."""
    hf = trained.train_byte_level(tmp_path, byte_level(split(trained.QWEN2)))
    model = json.loads(hf.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    pre_tokenizer = json.loads(hf.to_str())["pre_tokenizer"]
    splitter = Splitter(pre_tokenizer, model["vocab"], merges, ignore_merges=False)
    seen: dict[str, list[list[str]]] = {}

    class Recorder(LlamaCppJudge):
        def reference(self, tokenizer_json: str, texts: Sequence[str]) -> list[list[int]]:
            vocab = list(json.loads(tokenizer_json)["model"]["vocab"])
            found = super().reference(tokenizer_json, texts)
            seen["part"] = [[vocab[id] for id in ids] for ids in found]
            seen["whole"] = [hf.encode(text, add_special_tokens=False).tokens for text in texts]
            assert len(vocab) < len(model["vocab"])
            return found

    (best,) = try_pre_tokenizers(splitter, candidates(splitter.stages, False), Recorder())
    assert (best.name, best.different) == ("qwen2", ())
    assert seen["part"] == seen["whole"]
