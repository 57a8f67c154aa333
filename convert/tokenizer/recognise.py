"""Which of llama.cpp's pre-tokenizers a checkpoint gets: by its rules, by its tokens, or by the user's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from llmkit.convert.tokenizer.pretokenizer import ACCEPTED_NAMES, KNOWN, PreTokenizer, candidates, choose
from llmkit.convert.tokenizer.prove import Trial, try_pre_tokenizers
from llmkit.convert.tokenizer.stages import Merge, Splitter
from llmkit.errors import DependencyError, EngineError, UnsupportedError
from llmkit.protocols import TokenizerJudge

_OFFER: Final = "if you know one of llama.cpp's pre-tokenizers that fits, choose it with --tokenizer-pre NAME"
_SHOWN_TEXTS: Final = 2


def recognise(
    splitter: Splitter,
    clean_spaces: bool | None,
    pre: str | None,
    judge: TokenizerJudge | None,
    path: Path,
    notes: list[str],
) -> str:
    """The name of llama.cpp's pre-tokenizer that does what `splitter` does, or `pre` if the user chose one.

    Rules that are in the table need no `judge`; it is asked about others, and how far off an approximation is. `path`
    is the file that says how text is split. Raises UnsupportedError if there is no such pre-tokenizer, or llama.cpp
    does not know the user's choice.
    """
    if pre is not None:
        if pre not in ACCEPTED_NAMES:
            known = ", ".join(sorted(ACCEPTED_NAMES))
            raise UnsupportedError(f"--tokenizer-pre {pre}: llama.cpp knows no such pre-tokenizer; it knows {known}")
        return pre
    try:
        stages = splitter.stages
    except UnsupportedError as unknown:
        raise UnsupportedError(f"{path}: {unknown}; {_offer()}") from None
    chosen = choose(stages, splitter.ignore_merges, clean_spaces)
    if chosen is None:
        return _by_tokens(splitter, stages, judge, path, notes)
    if chosen.ignore_merges != splitter.ignore_merges and (lost := unreachable_tokens(splitter.vocab, splitter.merges)):
        notes.append(
            f"llama.cpp's pre-tokenizer {chosen.name} has ignore_merges {chosen.ignore_merges}, this tokenizer "
            f"{splitter.ignore_merges}: {len(lost)} tokens that no merge builds are treated differently, such as "
            f"{lost[0]!r}"
        )
    if chosen.deviation:
        notes.append(
            f"llama.cpp's pre-tokenizer {chosen.name} is approximate: tokens may differ for {chosen.deviation}"
            + _measured(splitter, chosen, judge)
        )
    return chosen.name


def unreachable_tokens(vocab: Mapping[str, int], merges: Sequence[Merge]) -> list[str]:
    """The tokens that the merges never build from single characters, so that only `ignore_merges` finds them."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    return [text for text in vocab if len(_merged(list(text), ranks)) != 1]


def _merged(parts: list[str], ranks: Mapping[Merge, int]) -> list[str]:
    """BPE of one word: merge the pair of lowest rank, leftmost first, until none is left."""
    while len(parts) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
        best = min(pairs)
        if best == len(ranks):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _offer() -> str:
    names = ", ".join(dict.fromkeys(known.name for known in KNOWN))
    return f"llmkit recognises those of {names}; {_OFFER}"


def _by_tokens(
    splitter: Splitter, stages: tuple[str, ...], judge: TokenizerJudge | None, path: Path, notes: list[str]
) -> str:
    """The name that gives equal tokens, though llmkit does not know the rules."""
    shown = f"{' then '.join(stages):.400}"
    problem = f"{path}: llmkit knows no pre-tokenizer of llama.cpp that splits by {shown}"
    if judge is None:
        raise UnsupportedError(f"{problem}; {_offer()}")
    try:
        trials = try_pre_tokenizers(splitter, candidates(stages, splitter.ignore_merges), judge)
    except (DependencyError, EngineError) as error:
        raise UnsupportedError(f"{problem}, and cannot look for one by its tokens: {error}; or, {_OFFER}") from error
    if not trials or trials[0].different:
        nearest = "; ".join(map(_differences, trials)) or "none that the installed llama.cpp loads"
        raise UnsupportedError(
            f"{path}: no pre-tokenizer of llama.cpp gives the tokens of this one, which splits by {shown}. Nearest: "
            f"{nearest}. To take one all the same, choose it with --tokenizer-pre NAME"
        )
    best = trials[0]
    notes.append(
        f"the tokenizer splits text by a rule that llmkit does not know ({shown}); llama.cpp's pre-tokenizer "
        f"{best.name} gives the same tokens on all {best.n_texts} texts that were compared"
    )
    return best.name


def _differences(trial: Trial) -> str:
    texts = ", ".join(f"{text!r:.60}" for text in sorted(trial.different, key=len)[:_SHOWN_TEXTS])
    return f"{trial.name} differs on {len(trial.different)} of {trial.n_texts} texts, such as {texts}"


def _measured(splitter: Splitter, chosen: PreTokenizer, judge: TokenizerJudge | None) -> str:
    """How many hard texts differ, and under which other name fewer would; empty if that cannot be found out."""
    if judge is None:
        return ""
    try:
        trials = try_pre_tokenizers(splitter, [chosen.name, *chosen.alternatives], judge)
    except (DependencyError, EngineError):
        return ""
    counts = {trial.name: len(trial.different) for trial in trials}
    if chosen.name not in counts:
        return ""
    text = f" ({counts[chosen.name]} of {trials[0].n_texts} hard texts differ)"
    if counts[trials[0].name] < counts[chosen.name]:
        text += (
            f"; --tokenizer-pre {trials[0].name}, which older versions of llama.cpp do not know, differs on "
            f"{counts[trials[0].name]}"
        )
    return text
