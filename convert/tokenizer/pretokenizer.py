"""Which of llama.cpp's pre-tokenizers does what a tokenizer.json does.

llama.cpp splits text by a fixed list of expressions that it looks up under a name (`tokenizer.ggml.pre`). Here each
name is described by what it does, as stages like those of a tokenizer.json (see `stages`): so a fine-tune with other
tokens is recognised like its parent.

Source of the table: src/llama-vocab.cpp of the pinned llama.cpp, `llm_tokenizer_bpe` (the expressions) and
`llama_vocab::impl::load` (the names, `ignore_merges` and `clean_spaces`).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from llmkit.convert.tokenizer import splitting as by
from llmkit.convert.tokenizer.stages import ON_BYTES


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A pre-tokenizer of llama.cpp: its name, what it splits by, and whether whole words skip the merges.

    `clean_spaces` says whether llama.cpp takes the space before a full stop and the like away when it turns tokens
    into text. `deviation` says for which text llama.cpp splits otherwise than the stages; `alternatives` are names that
    may come closer there.
    """

    name: str
    stages: tuple[str, ...]
    ignore_merges: bool = False
    clean_spaces: bool = False
    deviation: str = ""
    alternatives: tuple[str, ...] = ()


# They have [a-z] and [A-Z] for the classes of lower and upper case, and no marks in words.
_ASCII_CASE: Final = "words with combining marks or with capitals outside ASCII"
# They take all of these for one control character, which is in no range of letters.
_WIDE_SPACES: Final = "spaces outside ASCII"
# They take every class of letters for all letters, and count every number from its end.
_ANY_CASE: Final = "words with capitals inside, numbers next to letters, and numbers other than digits"

# Of names that do the same, the first is taken.
KNOWN: Final = (
    PreTokenizer("gpt-2", (by.GPT2,), clean_spaces=True),
    PreTokenizer("trillion", (by.GPT2,)),
    PreTokenizer("smollm", (by.DIGIT, by.GPT2)),
    PreTokenizer("starcoder", (by.DIGIT, by.GPT2), clean_spaces=True),
    PreTokenizer("llama-bpe", (by.LLAMA3,), ignore_merges=True, clean_spaces=True),
    PreTokenizer("smaug-bpe", (by.LLAMA3,), clean_spaces=True),
    PreTokenizer("tekken", (by.TEKKEN,), ignore_merges=True, deviation=_ASCII_CASE),
    PreTokenizer("qwen2", (by.QWEN2,)),
    PreTokenizer("stablelm2", (by.QWEN2,), clean_spaces=True),
    PreTokenizer("qwen35", (by.QWEN35,)),
    PreTokenizer("gpt-4o", (by.GPT4O,), deviation=_ASCII_CASE, alternatives=("granite-embed-multi-97m",)),
    # Both leave out that digits are split apart, on bytes: no merge of a vocabulary trained that way joins them. Falcon
    # 3's own name, falcon3, splits like Llama 3, which keeps line ends and the space after them together.
    PreTokenizer(
        "falcon",
        (f"{by.PUNCTUATION_MARK}+", by.GPT2, ON_BYTES + by.DIGITS, f"{ON_BYTES}[0-9][0-9][0-9]"),
        clean_spaces=True,
    ),
    PreTokenizer("falcon", (f"{by.PUNCTUATION_MARK}+", by.GPT2, ON_BYTES + by.DIGIT), clean_spaces=True),
    PreTokenizer("deepseek-v3", (by.DIGITS3, by.HAN_KANA, by.DEEPSEEK3)),
    # DeepSeek splits digits apart; llama.cpp keeps them together and finds no merges between them.
    PreTokenizer(
        "deepseek-llm",
        (by.LINE_ENDS, rf"\s?[{by.CASED}]+", by.PUNCTUATION, r"\s+$", by.HAN_HANGUL, by.DIGIT),
        deviation=_WIDE_SPACES,
    ),
    PreTokenizer(
        "deepseek-coder",
        (by.LINE_ENDS, r"\s?\p{L}+", r"\s?\p{P}+", by.HAN_HANGUL, by.DIGIT),
        deviation=_WIDE_SPACES,
    ),
    PreTokenizer("tiny_aya", (by.DIGITS3_FROM_THE_END, by.GPT4O), deviation=_ANY_CASE),
    PreTokenizer("kimi-k2", (by.KIMI,), deviation="words with combining marks or with capitals inside"),
    PreTokenizer("exaone-moe", (by.EXAONE_MOE,)),
    PreTokenizer("minicpm5", (by.DIGITS3, by.MINICPM5), ignore_merges=True, clean_spaces=True),
    PreTokenizer("seed-coder", (by.SEED_CODER,)),
    PreTokenizer("jais-2", (by.JAIS2,), clean_spaces=True),
    PreTokenizer("ufakzeka", (by.UFAKZEKA,)),
    PreTokenizer("spark2_5", (by.DIGITS3, by.HAN_KANA, by.SPARK, by.DIGIT)),
    PreTokenizer("bloom", (by.BLOOM,), clean_spaces=True),
    PreTokenizer("poro-chat", (by.BLOOM,)),
    PreTokenizer("viking", (by.BLOOM, by.DIGIT)),
    PreTokenizer(
        "laguna", (r"MergedWithNext: (?:\r?\n)+(?!\r?\n)", by.QWEN2), deviation="carriage returns before line feeds"
    ),
)

# Further ones that can turn out to fit: they do something that none of the names above does.
OTHERS: Final = ("granite-embed-multi-97m", "youtu", "afmoe", "chameleon", "default")

# A checkpoint without a BOS token: llama.cpp would take token 11 for it, but not under these names for the same thing.
WITHOUT_BOS: Final = {"llama-bpe": "glm4", "smaug-bpe": "chatglm-bpe"}

# Further names for what those of the table do.
_SAME: Final = {
    "gpt-2": "phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais exaone4",
    "trillion": "granite-docling",
    "smollm": "command-r",
    "starcoder": "refact codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
    "smaug-bpe": "dbrx chatglm-bpe",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe",
    "stablelm2": "megrez",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "tiny_aya": "cohere2moe",
    "bloom": "gpt3-finnish",
}
_FIRST_NAMES: Final = {other: name for name, others in _SAME.items() for other in others.split()}

# Names that the pinned llama.cpp accepts; it refuses to load a file with any other. The last ones are for other kinds
# of vocabularies, or add tokens around the text.
_FOR_OTHER_KINDS: Final = (
    "superbpe", "gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace", "roberta-bpe", "jina-v1-en",
    "jina-v2-code",
)  # fmt: skip
ACCEPTED_NAMES: Final = frozenset({*(known.name for known in KNOWN), *_FIRST_NAMES, *OTHERS, *_FOR_OTHER_KINDS})


def named(name: str) -> PreTokenizer | None:
    """What llama.cpp does under `name`; None if that is not known."""
    name = _FIRST_NAMES.get(name, name)
    return next((known for known in KNOWN if known.name == name), None)


def choose(stages: tuple[str, ...], ignore_merges: bool, clean_spaces: bool | None = None) -> PreTokenizer | None:
    """The pre-tokenizer that splits by `stages`, None if there is none.

    Of several one with the same `ignore_merges` is preferred, then one with the same `clean_spaces`; None means that
    the checkpoint does not say.
    """
    return min(
        (known for known in KNOWN if known.stages == stages),
        key=lambda known: (
            known.ignore_merges != ignore_merges,
            clean_spaces is not None and known.clean_spaces != clean_spaces,
        ),
        default=None,
    )


def candidates(stages: tuple[str, ...], ignore_merges: bool) -> list[str]:
    """All names that do different things, those first whose expressions look most like what is looked for."""
    text = "\n".join(stages)
    different: dict[tuple[tuple[str, ...], bool], PreTokenizer] = {}
    for known in KNOWN:
        different.setdefault((known.stages, known.ignore_merges), known)
    ranked = sorted(
        different.values(),
        key=lambda known: (
            -SequenceMatcher(None, "\n".join(known.stages), text, autojunk=False).ratio(),
            known.ignore_merges != ignore_merges,
        ),
    )
    return [*dict.fromkeys(known.name for known in ranked), *OTHERS]
