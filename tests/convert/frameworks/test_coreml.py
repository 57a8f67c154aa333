"""Core ML runs on Apple's systems only: what is stated in the package, and what its program comes to in NumPy."""

from __future__ import annotations

import atexit
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.cli import run
from llmkit.convert.frameworks.build import map_weights
from llmkit.convert.frameworks.registry import FRAMEWORKS
from llmkit.convert.frameworks.target import WEIGHTS
from llmkit.formats.exported import read_exported
from tests.convert.frameworks.milprogram import MilProgram, load_spec
from tests.convert.frameworks.reference import CONTEXT, N_PROMPT, N_STEPS, Reference, reference, require
from tests.convert.frameworks.test_parity import VARIED

MODEL = "model.mlpackage"
# Every operation there may be; all are in Core ML 8, the set of iOS 18.
COMMON = {
    *("const", "read_state", "write_state", "slice_update", "slice_by_index", "shape", "squeeze", "range_1d", "gather"),
    *("add", "sub", "mul", "real_div", "abs", "maximum", "reduce_max", "reduce_mean", "rsqrt", "linear", "split"),
    *("reshape", "transpose", "concat", "less_equal", "identity"),
}
SOME = {
    *("constexpr_blockwise_shift_scale", "scaled_dot_product_attention", "silu", "gelu", "tanh", "greater"),
    *("logical_and", "topk", "softmax", "matmul", "reduce_sum", "select", "clip", "sigmoid"),
}


@pytest.fixture(autouse=True)
def _coremltools() -> None:
    require("coreml")


@cache
def converted(family: str, target: str) -> Path:
    parent = Path(mkdtemp(prefix="llmkit-coreml-"))
    atexit.register(rmtree, parent, ignore_errors=True)
    return llmkit.convert(reference(family).folder, target, output=parent / "m", context=CONTEXT, threads=2).path


@cache
def full_weights(family: str) -> dict[str, NDArray[np.float32]]:
    """In float32, by their names in the program: those of another format, which are joined in the same way."""
    weights = map_weights(converted(family, "onnx-standard") / WEIGHTS)
    return {re.sub(r"\W", "_", name): np.asarray(values, np.float32) for name, values in weights.items()}


def logits(program: MilProgram, expected: Reference, first: int = N_PROMPT) -> NDArray[np.float32]:
    """Of all tokens: a first run, one of three tokens, and one by one over the states."""
    ids = np.array(expected.ids[: N_PROMPT + N_STEPS], np.int32)
    borders = [0, first, *range(first + 3, len(ids)), len(ids)]
    rows = [
        program(input_ids=ids[None, begin:end], position=np.array([begin], np.int32))["logits"][0]
        for begin, end in pairwise(borders)
    ]
    return np.concatenate(rows)


def error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("target", ["coreml", "coreml-int4"])
@pytest.mark.parametrize("family", VARIED)
def test_what_the_package_states(family: str, target: str) -> None:
    folder = converted(family, target)
    manifest = read_exported(folder)
    spec = load_spec(folder / MODEL)
    assert spec.specificationVersion == 9  # iOS 18, macOS 15
    described = spec.description
    from coremltools.proto import FeatureTypes_pb2

    types = FeatureTypes_pb2.ArrayFeatureType
    ids, position = described.input
    (found,) = described.output
    assert [one.name for one in (ids, position, found)] == ["input_ids", "position", "logits"]
    assert ids.type.multiArrayType.dataType == position.type.multiArrayType.dataType == types.INT32
    assert found.type.multiArrayType.dataType == types.FLOAT16
    ranges = [(one.lowerBound, one.upperBound) for one in ids.type.multiArrayType.shapeRange.sizeRanges]
    assert ranges == [(1, 1), (1, manifest.tokens_at_once)]
    assert list(position.type.multiArrayType.shape) == [1]
    layers, _, *shape = manifest.cache_shape
    for state, name in zip(described.state, ("keys", "values"), strict=True):
        array = state.type.stateType.arrayType
        assert (state.name, array.dataType, list(array.shape)) == (name, types.FLOAT16, [layers, *shape])
    function = spec.mlProgram.functions["main"]
    assert (list(spec.mlProgram.functions), function.opset) == (["main"], "CoreML8")
    operations = {one.type for one in function.block_specializations["CoreML8"].operations}
    assert COMMON <= operations <= COMMON | SOME
    assert ("constexpr_blockwise_shift_scale" in operations) == (target == "coreml-int4")


def test_the_size_of_weights() -> None:
    def nbytes(target: str) -> int:
        return (converted("llama", target) / MODEL / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    tensors = full_weights("llama")
    sizes = {name: values.size for name, values in tensors.items()}
    padding = 2 * 64 * (len(sizes) + 8) + 64  # a header for each, and borders of 64 bytes
    n = sum(sizes.values())
    bias = 2 * (len(tensors["token_embd_weight"]) + 2048)  # the zeros that operations without a bias are given
    assert 2 * n < nbytes("coreml") < 2 * n + bias + padding
    tables = sizes["token_embd_weight"] + sizes.get("output_weight", 0)
    matrices = sum(size for name, size in sizes.items() if name.startswith("blk_") and tensors[name].ndim == 2)
    expected = tables * (1 + 2 / 64) + matrices * (4 + 16 / 32) / 8 + 2 * (n - tables - matrices)
    assert expected < nbytes("coreml-int4") < expected + bias + 2 * padding


@pytest.mark.parametrize("family", VARIED)
def test_logits_with_full_constants(family: str) -> None:
    """The graph is transformers' function: with weights in float32 what differs are scalars in half precision."""
    expected = reference(family)
    program = MilProgram(converted(family, "coreml") / MODEL, np.float32, full_weights(family))
    found = logits(program, expected)
    # 1.702 and 1 / sqrt(32), of GPT-OSS's gates and attention, are not numbers of half precision.
    assert error(found, expected.logits) < (3e-4 if family == "gpt_oss" else 5e-6)
    assert np.array_equal(found[:-1].argmax(-1)[N_PROMPT - 1 :], expected.ids[N_PROMPT:])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
def test_logits_in_half_precision(family: str) -> None:
    """Tokens with the experts of full precision; two experts that score almost the same may change places in half."""
    expected, package = reference(family), converted(family, "coreml") / MODEL
    program, full = MilProgram(package), MilProgram(package, np.float32, full_weights(family))
    found, _ = logits(program, expected), logits(full, expected)
    n_blocks = read_exported(converted(family, "coreml")).cache_shape[0]
    assert len(program.routed) == len(full.routed) == (n_blocks if family == "gpt_oss" else 0)
    same = np.ones(len(found), bool)
    for block, routed in full.routed.items():
        scores, best = (np.concatenate(values, 1)[0] for values in zip(*routed, strict=True))
        chosen = np.concatenate([places for _, places in program.routed[block]], 1)[0]
        lost = (np.take_along_axis(scores, best, -1) - np.take_along_axis(scores, chosen, -1)).sum(-1)
        assert lost.max() < 1e-2 * np.ptp(scores, -1).mean()
        same &= (np.sort(best, -1) == np.sort(chosen, -1)).all(-1)
    assert same.mean() > 0.98
    assert 1e-5 < error(found[same], expected.logits[same]) < 1e-2
    assert error(found, expected.logits) < 2e-2


def test_weights_of_few_bits() -> None:
    expected, full = reference("llama"), full_weights("llama")
    program = MilProgram(converted("llama", "coreml-int4") / MODEL)
    forms = {one.outputs[0].name for one in program.block.operations if one.type.startswith("constexpr_")}
    assert len(forms) > 8
    for name in forms:
        low, high = (1e-3, 1e-2) if name in ("token_embd_weight", "output_weight") else (0.03, 0.12)
        assert low < error(program.constants[name], full[name]) < high, name
    assert error(logits(program, expected)[:N_PROMPT], expected.logits[:N_PROMPT]) < 0.7


def test_what_lies_behind_is_not_looked_at() -> None:
    """States need not be cleared for another text."""
    expected = reference("llama")
    program = MilProgram(converted("llama", "coreml") / MODEL)
    wanted = logits(program, expected)
    assert np.array_equal(logits(program, expected), wanted)


def test_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m"
    assert run(["convert", str(reference("llama").folder), "--to", "coreml", "-o", str(output)]) == 0
    printed = capfd.readouterr()
    assert "not run" in printed.out + printed.err
    assert "Running MIL" not in printed.err
    assert "coremltools" not in printed.err
    assert {path.name for path in output.iterdir()} >= {MODEL, "llmkit.json", "tokenizer.json"}
    assert run(["inspect", str(output)]) == 0
    assert FRAMEWORKS["coreml"].title in capfd.readouterr().out
    assert run(["generate", str(output), "-p", "hello"]) == 1
    assert "does not run 'coreml'" in capfd.readouterr().err
