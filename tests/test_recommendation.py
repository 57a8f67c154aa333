"""`llmkit recommend`: exact sizes, a choice that follows from them, and what is said of other places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import recommendation
from llmkit.cli import run
from llmkit.errors import EvaluationError, LlmkitError, UnsupportedError
from llmkit.evaluate.known import Quality
from llmkit.machine import Gpu, Machine
from llmkit.measuring import Measured
from llmkit.recommendation import Candidate, recommend
from llmkit.sizes import sizes_of
from tests.tinymodels import TinyLlama

MIXED = ["onnx-int4 --recipe quality"]
MACHINE = Machine("Linux", "Intel(R) Xeon(R)", "x86_64", 4, ("AVX2",), 16 * 10**9, 8 * 10**9, ())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(dtype="F32").write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the machine that there seems to be."""

    def put(machine: Machine = MACHINE, bandwidth: float = 2e10) -> None:
        monkeypatch.setattr(recommendation, "this_machine", lambda: machine)
        monkeypatch.setattr(recommendation, "read_bandwidth", lambda _threads: bandwidth)

    put()
    return put


def test_sizes_are_those_of_the_files(tiny: Path, tmp_path: Path) -> None:
    found = sizes_of(tiny, context=100)
    assert found.n_context == 100
    for size in found.targets:
        if size.target in ("gguf-f32", "gguf-q4_k_m", "gguf-iq4_xs", "onnx-fp32", "onnx-int4"):
            result = llmkit.convert(tiny, size.target, output=tmp_path / f"{size.target}.gguf")
            assert size.n_bytes == sum(path.stat().st_size for path in result.paths), size.target
            tensors = sum(tensor.nbytes for tensor in result.plan.tensors)
            assert size.bytes_per_token <= tensors < size.memory
    mixed = next(size for size in found.targets if size.target == MIXED[0])
    result = llmkit.convert(tiny, "onnx-int4", recipe="quality", output=tmp_path / "mixed")
    assert mixed.n_bytes == sum(path.stat().st_size for path in result.paths)
    names = [size.target for size in found.targets]
    assert len(set(names)) == len(names) == 19 + 5


def test_sizes_of_a_gguf_file(tiny: Path, tmp_path: Path) -> None:
    path = llmkit.convert(tiny, "gguf-f16", output=tmp_path / "m.gguf").path
    found = {size.target: size for size in sizes_of(path, context=100).targets}
    again = llmkit.quantize(path, "q5_0", output=tmp_path / "q.gguf").path
    assert found["gguf-q5_0"].n_bytes == again.stat().st_size
    with pytest.raises(UnsupportedError, match="quantised already"):
        sizes_of(again)


def test_contexts(tiny: Path) -> None:
    assert sizes_of(tiny).n_context == 512  # what it was trained for
    short, long = (sizes_of(tiny, context=n) for n in (64, 128))
    assert long.cache_bytes == 2 * short.cache_bytes
    gguf, onnx = (next(s for s in long.targets if s.target == target) for target in ("gguf-q8_0", "onnx-int8"))
    shorter = {size.target: size for size in short.targets}
    assert gguf.memory - shorter["gguf-q8_0"].memory == short.cache_bytes
    assert onnx.memory - shorter["onnx-int8"].memory == 2 * short.cache_bytes  # float32
    for wrong in (0, 1 << 30):
        with pytest.raises(EvaluationError, match="context"):
            sizes_of(tiny, context=wrong)


def candidate(target: str, size: int, agreement: float, **more: Any) -> Candidate:
    quality = Quality(0.1, agreement, 0.05, min(1.0, agreement + 0.05))
    given: dict[str, Any] = {"memory": size, "fits": True, "tokens_per_second": 1e9 / size, "quality": quality} | more
    return Candidate(target=target, size=size, **given)


CANDIDATES = [
    candidate("a", 400, 0.99),
    candidate("b", 300, 0.95),
    candidate("c", 200, 0.91),
    candidate("d", 100, 0.80),
    candidate("e", 50, 0.999, fits=False),
    candidate("f", 60, 0.0, quality=None),
]


@pytest.mark.parametrize(
    ("agreement", "chosen", "reason"),
    [
        (0.9, "c", "3 that fit and agree"),
        (0.93, "b", "fastest: 95.0% (estimated)"),
        (0.5, "d", "4 that fit"),
        (0.995, "a", "nothing that fits agrees.*99.0% (estimated)"),
    ],
)
def test_the_fastest_that_agrees_is_taken(agreement: float, chosen: str, reason: str) -> None:
    found, why = recommendation._choose(CANDIDATES, agreement)
    assert found.target == chosen
    assert all(part in why for part in reason.split(".*"))


def test_what_was_measured_counts_more_than_estimates() -> None:
    measured = [
        replace(CANDIDATES[0], measured=Measured(0.01, 0.97, 20.0, None)),
        replace(CANDIDATES[1], measured=Measured(0.02, 0.94, 30.0, None)),
        replace(CANDIDATES[2], measured=Measured(0.09, 0.85, 40.0, None)),
        *CANDIDATES[3:],
    ]
    found, why = recommendation._choose(measured, 0.9)
    assert found.target == "b"
    assert "94.0% (measured)" in why
    assert recommendation._choose(measured, 0.96)[0].target == "a"
    assert recommendation._choose(measured, 0.98)[0].target == "a"  # comes nearest


def test_what_is_worth_measuring() -> None:
    """Those that no smaller one is expected to beat, nearest first."""
    beaten = candidate("x", 350, 0.90)
    assert recommendation._shortlist([*CANDIDATES, beaten], 0.9) == ["c", "b", "a", "d"]


def test_an_importance_matrix_may_bring_a_smaller_one_as_far() -> None:
    found = recommendation._better_with_importance(CANDIDATES, CANDIDATES[1], 0.95)
    assert found is not None
    assert "c should do, 33% smaller: 96.0%" in found
    assert recommendation._better_with_importance(CANDIDATES, CANDIDATES[3], 0.7) is None
    assert recommendation._better_with_importance(CANDIDATES, CANDIDATES[0], 0.999) is None  # not reached at all


def test_on_a_real_model(tiny: Path, on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = recommend(tiny, memory="1GB", min_agreement=0.9, context=64)
    assert (found.device, found.memory, found.n_context) == ("cpu", 10**9, 64)
    chosen = next(one for one in found.candidates if one.target == found.chosen)
    assert chosen.agreement >= 0.9
    assert found.commands == (f"llmkit convert {tiny} --to {found.chosen}",)
    assert any("OpenVINO" in text for text in found.elsewhere)  # the machine's processor is Intel's
    assert run(["-q", "recommend", str(tiny), "--memory", "1GB", "-c", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == found.chosen
    assert run(["recommend", str(tiny), "--memory", "1GB", "-c", "64"]) == 0
    out = capsys.readouterr().out
    assert f"Take {found.chosen}:" in out
    assert "memory is read at 20.0 GB/s" in out
    assert "gguf-q3_k_s" not in out or "gguf-q2_k" not in out  # not all are listed
    assert run(["recommend", str(tiny), "--memory", "1GB", "-c", "64", "--all"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(("gguf", "onnx"))]) == 23


def test_other_places(tiny: Path, on: Any) -> None:
    phone = recommend(tiny, device="phone")
    assert phone.memory is None
    assert phone.bandwidth is None
    assert all(one.target.startswith("gguf-") and one.tokens_per_second is None for one in phone.candidates)
    assert [line.partition(":")[0] for line in phone.elsewhere] == ["LiteRT", "LiteRT-LM", "ExecuTorch", "Core ML"]
    assert [line.partition(":")[0] for line in recommend(tiny, device="apple").elsewhere] == ["Core ML", "MLX"]
    assert "llmkit convert MODEL --to openvino-int4" in recommend(tiny, device="intel").elsewhere[0]
    on(replace(MACHINE, gpus=(Gpu("H100", 80 << 30),)))
    cuda = recommend(tiny)
    assert (cuda.device, cuda.memory) == ("cuda", int(0.9 * (80 << 30)))
    assert {one.target for one in cuda.candidates} == {"onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4", *MIXED}
    assert cuda.commands[0].endswith("--ep cuda")
    assert any("vLLM" in line for line in cuda.elsewhere)
    on(replace(MACHINE, system="Darwin", architecture="arm64"))
    mac = recommend(tiny)
    assert (mac.device, mac.memory) == ("apple", MACHINE.available)


def test_what_cannot_be(tiny: Path, on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EvaluationError, match=r"tiny does not fit: the smallest form, gguf-.* needs"):
        recommend(tiny, memory="1MB")
    with pytest.raises(EvaluationError, match="nvidia-smi tells of no GPU"):
        recommend(tiny, device="cuda")
    with pytest.raises(EvaluationError, match="on a CPU only"):
        recommend(tiny, device="phone", measure=True)
    with pytest.raises(EvaluationError, match=r"min_agreement is 1\.5"):
        recommend(tiny, min_agreement=1.5)
    with pytest.raises(EvaluationError, match="device is 'tpu'"):
        recommend(tiny, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(LlmkitError, match="not a size"):
        recommend(tiny, memory="much")
    assert run(["recommend", "./missing"]) == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["checkpoint", "gguf"])
def test_measuring_for_real(
    source: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recommendation, "_shortlist", lambda *_: ["gguf-q8_0", *MIXED])
    monkeypatch.setattr("llmkit.measuring._WINDOWS", 2)
    monkeypatch.setattr("llmkit.measuring._GENERATED", 4)
    model = tiny if source == "checkpoint" else llmkit.convert(tiny, "gguf-f32", output="f32.gguf").path
    before = sorted(tmp_path.iterdir())
    arguments = ["-q", "recommend", str(model), "--measure", "--memory", "2GB", "-c", "64", "--threads", "1"]
    if source == "gguf":
        assert run(arguments) == 0
        assert "measured: mean KL" in capsys.readouterr().out
        return
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = [one["measured"] for one in found["candidates"] if one["measured"]]
    assert len(measured) == 2
    for one in measured:
        assert one["mean_kl"] > 0
        assert 0 < one["agreement"] <= 1
        assert one["tokens_per_second"] > 0
    assert "(measured)" in found["why"]
    assert sorted(tmp_path.iterdir()) == before  # what was made to be measured is gone


def test_families_without_a_graph_are_said_so(tmp_path: Path, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyLlama(dtype="F32").write(tmp_path / "tiny")

    def refuse(*_: object) -> None:
        raise UnsupportedError("no graph")

    monkeypatch.setattr("llmkit.convert.network.source.from_checkpoint", refuse)
    found = recommend(model, memory="1GB")
    assert found.notes == ("no ONNX: no graph",)
    assert all(one.target.startswith("gguf-") for one in found.candidates)
    on(replace(MACHINE, gpus=(Gpu("H100", 80 << 30),)))
    with pytest.raises(EvaluationError, match="no form for device cuda: no ONNX: no graph"):
        recommend(model)


def test_ctrl_c_while_measuring_ends_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the numbers is no ground to choose on."""
    from llmkit.evaluate.records import Comparison

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmkit.comparison.compare", lambda *_, **__: Comparison("", 1, 8, [], [], {}, True))
    with pytest.raises(KeyboardInterrupt):
        recommend(tiny, measure=True, memory="2GB")
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_reads_the_experts_that_it_uses(tmp_path: Path) -> None:
    from llmkit.sizes import _read_for_a_token

    plan = llmkit.convert(TinyLlama(dtype="F32").write(tmp_path / "tiny"), "gguf-f32", output=tmp_path / "m").plan
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    total = sum(tensor.nbytes for tensor in plan.tensors)
    embedding = tensors["token_embd.weight"]
    expected = total if "output.weight" not in tensors else total - embedding.nbytes + embedding.shape[-1] * 4
    assert _read_for_a_token(plan, 1.0) == expected
    expert = replace(tensors["blk.0.ffn_up.weight"], name="blk.0.ffn_up_exps.weight")
    files = (replace(plan.files[0], tensors=(*plan.files[0].tensors, expert)),)
    assert _read_for_a_token(replace(plan, files=files), 0.25) == expected + expert.nbytes // 4
