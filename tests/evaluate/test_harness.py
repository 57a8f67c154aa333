"""Sessions in lm-evaluation-harness: beside its own model for transformers, on tasks of one's own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llmkit
from llmkit.cli import run
from llmkit.errors import DependencyError, EvaluationError
from llmkit.evaluate.harness import SessionModel
from llmkit.evaluate.journal import Journal
from llmkit.evaluate.likelihoods import likelihoods
from llmkit.progress import Silent
from llmkit.protocols import SessionInfo
from llmkit.runtimes.fake import FakeSession

QUERIES = [f"Question {n}: what comes after {n} and {n + 1}?" for n in range(12)]
CHOICES = [[str(n + 2), str(n), "nothing at all", f"{n + 1} {n}"] for n in range(12)]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task named arithmetic_here, whose data lie in a local file."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    rows = [{"query": q, "choices": c, "gold": 0} for q, c in zip(QUERIES, CHOICES, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "arithmetic.yaml").write_text(
        f"""
task: arithmetic_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3}}
"""
    )
    return tmp_path / "tasks"


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.fixture(scope="module")
def judge(tiny_forms: dict[str, Path]) -> Any:
    """The harness's own model for transformers."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny_forms["checkpoint"]), device="cpu", dtype="float32", batch_size=4, max_length=128)


@pytest.mark.parametrize("engine", ["checkpoint", "gguf", "onnx"])
def test_likelihoods_are_those_of_the_harness(tiny_forms: dict[str, Path], judge: Any, engine: str) -> None:
    asked = requests(
        *((q, f" {c}") for q, choices in zip(QUERIES, CHOICES, strict=True) for c in choices),
        ("", "no context"),
        ("trailing blanks   ", "belong to the answer"),
        ("a long one " * 40, " is cut at its beginning"),
    )
    expected = judge.loglikelihood(asked, disable_tqdm=True)
    rolling = requests(("A text of many windows, of which each is scored once. " * 8,), ("short",), ("",))
    expected_rolling = judge.loglikelihood_rolling(rolling[:2], disable_tqdm=True)
    extra = {"full_precision": True, "n_branches": 8} if engine == "gguf" else {}
    with llmkit.load(tiny_forms[engine], n_context=128, n_threads=1, **extra) as session:
        model = SessionModel(session, Silent())
        found = model.loglikelihood(asked, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert model.loglikelihood_rolling(rolling)[:2] == pytest.approx(expected_rolling, abs=2e-3)
        settings = {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False}
        generations = requests(*((query, settings) for query in QUERIES[:3]))
        assert model.generate_until(generations) == judge.generate_until(generations, disable_tqdm=True)
        with pytest.raises(EvaluationError, match="does not fit a context of 128"):
            model.loglikelihood(requests(("short", " and a long answer" * 30)), disable_tqdm=True)
        with pytest.raises(EvaluationError, match="answers of 200 tokens"):
            model.generate_until(requests(("short", {"max_gen_toks": 200})))


def test_a_task_in_a_file(
    tiny_forms: dict[str, Path], task: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(task)  # no repository, which the harness would have git say
    paths = [tiny_forms["checkpoint"], tiny_forms["gguf"]]
    found = llmkit.run_tasks(paths, "arithmetic_here", folders=[task], limit=8, n_few_shot=1, threads=1)
    assert [*found] == ["tiny", "tiny.gguf"]
    one, other = found.values()
    assert [(s.task, s.metric, s.n_samples, s.n_few_shot, s.version) for s in one] == [
        ("arithmetic_here", "acc", 8, 1, "3"),
        ("arithmetic_here", "acc_norm", 8, 1, "3"),
    ]
    assert one[0].score == other[0].score
    assert 0 <= one[0].score.value <= 1
    assert one[0].score.value * 8 % 1 == 0

    arguments = [
        "eval",
        str(tiny_forms["gguf"]),
        "--tasks",
        "arithmetic_here",
        "--include",
        str(task),
        "--threads",
        "1",
    ]
    assert run([*arguments, "--few-shot", "1", "--limit", "8", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["tiny.gguf"][0]["score"]["value"] == other[0].score.value
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("Asking tiny") for line in lines)
    assert run(["-q", *arguments]) == 0
    out, err = capfd.readouterr()
    assert "acc_norm" in out
    assert err == ""


def test_what_cannot_be_run(
    tiny_forms: dict[str, Path], task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EvaluationError, match="no_such_task"):
        llmkit.run_tasks(tiny_forms["gguf"], "no_such_task")
    with pytest.raises(EvaluationError, match="no task was given"):
        llmkit.run_tasks(tiny_forms["gguf"], [])
    (task / "broken.yaml").write_text("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: missing.json}\n")
    with pytest.raises(EvaluationError, match="broken"):
        llmkit.run_tasks(tiny_forms["gguf"], "broken", folders=[task])
    for wrong in (["--text", "x"], ["--choices", "x.json"], ["--reference", "y"]):
        assert run(["eval", str(tiny_forms["gguf"]), "--tasks", "arithmetic_here", *wrong]) == 2
    assert run(["eval", str(tiny_forms["gguf"]), "--limit", "3"]) == 2
    assert "belong to --tasks" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "llmkit.evaluate.harness", None)
    with pytest.raises(DependencyError, match=r"llmkit\[tasks\]"):
        llmkit.run_tasks(tiny_forms["gguf"], "arithmetic_here")


def test_prompts_are_taken_in_the_order_of_what_they_share() -> None:
    """So that the cache keeps the beginnings that they have in common."""
    taken = []

    class Recorded(FakeSession):
        def each_continuation(self, prefix: Any, continuations: Any) -> Any:
            taken.append((bytes(prefix), [bytes(ids) for ids in continuations]))
            return super().each_continuation(prefix, continuations)

    pairs = [(list(one), list(other)) for one, other in ((b"xy", b"z"), (b"ab", b"cd"), (b"xy", b"w"), (b"aa", b"ab"))]
    found = dict(likelihoods(Recorded(), pairs))
    assert taken == [(b"aa", [b"ab"]), (b"ab", [b"cd"]), (b"xy", [b"z", b"w"])]
    assert [found[number].is_greedy for number in range(4)] == [True, True, False, False]
    assert 0 > found[1].value > found[2].value


def test_sampled_answers_are_not_kept(tmp_path: Path) -> None:
    """The harness asks for several of them with the same words."""
    count = 0

    def answer(_prompt: str) -> str:
        nonlocal count
        count += 1
        return str(count)

    class Ended(FakeSession):
        @property
        def info(self) -> SessionInfo:
            return replace(super().info, bos=0)

    with Journal(tmp_path / "r") as results:
        model = SessionModel(Ended(answer), Silent(), results.about())
        sampled = requests(*[("x", {"do_sample": True, "temperature": 0.7, "until": [], "max_gen_toks": 5})] * 3)
        assert model.generate_until(sampled) == ["1", "2", "3"]
        greedy = requests(*[("x", {"do_sample": False, "until": [], "max_gen_toks": 5})] * 3)
        assert model.generate_until(greedy) == ["4", "4", "4"]
