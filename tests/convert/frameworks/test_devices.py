"""Where models of deployment formats run. Without a GPU who asks for one is told so; programs can move."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmkit
from llmkit.errors import EngineError
from tests.convert.frameworks.reference import require
from tests.tinymodels import TinyLlama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(dtype="F32").write(tmp_path_factory.mktemp("models") / "tiny")


HAVE_CUDA = {
    "torch": "torch.cuda.is_available",
    "stablehlo": "jax.default_backend",
    "onnx-standard": "llmkit.runtimes.exported.ort_engine.load_cuda_libraries",
}


@pytest.mark.parametrize("target", HAVE_CUDA)
def test_devices(target: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(target)
    monkeypatch.setattr(HAVE_CUDA[target], lambda: False)
    folder = llmkit.convert(tiny, target, output=tmp_path / "m", context=64).path
    for device in ("auto", "cpu"):
        with llmkit.load(folder, device=device) as session:
            assert session.info.extra["device"] == "cpu"
    with pytest.raises(EngineError, match=r"device cuda: .* take --device cpu"):
        llmkit.load(folder, device="cuda")
    with pytest.raises(EngineError, match=f"{target} models take auto, cpu, cuda"):
        llmkit.load(folder, device="tpu")


def test_a_format_for_the_cpu(tiny: Path, tmp_path: Path) -> None:
    folder = llmkit.convert(tiny, "torchscript", output=tmp_path / "m", context=64).path
    with pytest.raises(EngineError, match="torchscript models take auto, cpu"):
        llmkit.load(folder, device="cuda")


def test_all_of_a_torch_program_moves(tiny: Path, tmp_path: Path) -> None:
    """On torch's device `meta`, which computes shapes, and takes no tensor of another device."""
    import torch

    from llmkit.runtimes.exported.torch_engine import on_device

    folder = llmkit.convert(tiny, "torch", output=tmp_path / "m", context=64).path
    with llmkit.load(folder) as session:
        n_vocab, shape = session.info.n_vocab, session._context._engine._model.cache_shape  # type: ignore[attr-defined]
    program = on_device(torch.export.load(folder / "model.pt2"), "meta")
    cache = [torch.zeros(shape, device="meta") for _ in range(2)]
    logits, *_ = program(torch.zeros((1, 5), dtype=torch.int64, device="meta"), torch.tensor(0, device="meta"), *cache)
    assert logits.device.type == "meta"
    assert tuple(logits.shape) == (1, 5, n_vocab)


def test_stablehlo_is_for_any_platform(tiny: Path, tmp_path: Path) -> None:
    require("stablehlo")
    from jax import export

    folder = llmkit.convert(tiny, "stablehlo", output=tmp_path / "m", context=64).path
    exported = export.deserialize(bytearray((folder / "decode.jax").read_bytes()))
    assert export.DisabledSafetyCheck.platform() in exported.disabled_safety_checks
    text = (folder / "decode.mlir").read_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") > 0
