"""The pre-tokenizers of published tokenizer.json files, as their authors wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from tests.convert.trained import GPT4O, LLAMA3, QWEN2, TEKKEN, byte_level, split

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
HAN_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)


def digits(*, individual: bool) -> Any:
    return pre_tokenizers.Digits(individual_digits=individual)


def sequence(*steps: Any) -> Any:
    return pre_tokenizers.Sequence(list(steps))


GPT2_STEP = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
MARKS = pre_tokenizers.Punctuation("contiguous")


@dataclass(frozen=True)
class Published:
    """A pre-tokenizer, and the name that llmkit should find for it."""

    pre_tokenizer: Any
    name: str
    ignore_merges: bool = False
    cleans: bool | None = None  # clean_up_tokenization_spaces, where the checkpoint says so


PUBLISHED = {
    # GPT-NeoX, Pythia, Mamba, OLMo 1, Phi-1 to 2, ModernBERT and EXAONE 4 too
    "gpt2": Published(GPT2_STEP, "gpt-2"),
    "gpt2, exact text": Published(GPT2_STEP, "trillion", cleans=False),
    "gpt2, tiktoken's spelling": Published(byte_level(split(R50K)), "gpt-2"),
    # StarCoder 2, Granite 3, Command-R, EXAONE 3 and Refact too
    "smollm": Published(sequence(digits(individual=True), GPT2_STEP), "smollm"),
    "starcoder2": Published(sequence(digits(individual=True), GPT2_STEP), "starcoder", cleans=True),
    # SmolLM3 and LFM2 too
    "llama3": Published(byte_level(split(LLAMA3)), "llama-bpe", ignore_merges=True, cleans=True),
    # OLMo 2 and 3, Phi-4 and DBRX
    "cl100k": Published(byte_level(split(LLAMA3, "removed", invert=True)), "smaug-bpe"),
    "cl100k, tiktoken's spelling": Published(byte_level(split(CL100K)), "smaug-bpe"),
    "qwen2": Published(byte_level(split(QWEN2)), "qwen2", cleans=False),
    "stablelm2": Published(byte_level(split(QWEN2)), "stablelm2", cleans=True),
    "ling": Published(byte_level(split(CL100K.replace("{1,3}", ""))), "qwen2"),
    "qwen3.5": Published(byte_level(split(QWEN35)), "qwen35"),
    # GPT-OSS and Llama 4 too
    "o200k": Published(byte_level(split(GPT4O)), "gpt-4o"),
    "mistral": Published(byte_level(split(TEKKEN)), "tekken", ignore_merges=True),
    "falcon": Published(sequence(MARKS, GPT2_STEP, digits(individual=False), split("[0-9][0-9][0-9]")), "falcon"),
    "falcon3": Published(sequence(MARKS, GPT2_STEP, digits(individual=True)), "falcon"),
    "deepseek3": Published(byte_level(split(r"\p{N}{1,3}"), split(HAN_KANA), split(DEEPSEEK3)), "deepseek-v3"),
    "deepseek-coder": Published(
        byte_level(
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            digits(individual=True),
        ),
        "deepseek-coder",
    ),
    "aya": Published(byte_level(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(GPT4O)), "tiny_aya"),
    "exaone-moe": Published(byte_level(split(EXAONE_MOE)), "exaone-moe"),
    "minicpm5": Published(
        byte_level(split(r"\p{N}{1,3}"), split(LLAMA3.replace("{1,3}", "+"))), "minicpm5", ignore_merges=True
    ),
    "spark": Published(
        byte_level(
            split(r"\p{N}{1,3}"),
            split(HAN_KANA),
            split(DEEPSEEK3.replace(r"]+[\r\n]*|\s*[\r\n]+", r"]+|[\r\n]")),
            digits(individual=True),
        ),
        "spark2_5",
    ),
    "bloom": Published(byte_level(split(" ?[^(\\s|[.,!?…。，、।۔،])]+")), "bloom"),
    "viking": Published(byte_level(split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), digits(individual=True)), "viking"),
    "laguna": Published(byte_level(split(r"(?:\r?\n)+(?!\r?\n)", "merged_with_next"), split(QWEN2)), "laguna"),
}
