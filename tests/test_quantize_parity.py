"""`llmkit quantize` against llama-quantize: the same file, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.recipes import RECIPES, TypeOptions, parse_tensor_type
from llmkit.types import TensorType
from tests import peer
from tests.tinygguf import Floats, TinyGGUF, importance_of, write_importance

QUANTIZING = [name for name, recipe in RECIPES.items() if recipe.quantizes]
COMMON = ("q4_k_m", "q5_k_m", "q3_k_m", "q2_k", "iq4_xs", "q4_0")
MODELS = {
    "dense": TinyGGUF(n_layers=9),
    "tied, grouped heads": TinyGGUF(n_heads=4, n_kv_heads=1, tied=True),
    "rows of 192": TinyGGUF(n_embd=192, n_ff=320, n_heads=3, n_kv_heads=3),
    "4 experts": TinyGGUF(n_experts=4),
    "8 experts": TinyGGUF(n_experts=8, n_ff=256),
}


def assert_same_file(ours: Path, theirs: Path) -> None:
    if ours.read_bytes() == theirs.read_bytes():
        return
    with open_gguf(ours) as a, open_gguf(theirs) as b:  # tell where they differ
        assert list(a.tensors) == list(b.tensors)
        assert {n: t.dtype for n, t in a.tensors.items()} == {n: t.dtype for n, t in b.tensors.items()}
        assert [n for n in a.tensors if not np.array_equal(a.raw(n), b.raw(n))] == []
        assert list(a.metadata.items()) == list(b.metadata.items())
    pytest.fail("the files differ outside tensors and metadata")


def compare(
    source: Path,
    name: str,
    folder: Path,
    importance: dict[str, Floats] | None = None,
    *,
    options: TypeOptions | None = None,
    requantize: bool = False,
    ours: Path | None = None,
) -> None:
    """Quantise `source` both ways, unless `ours` is there already, and compare the files."""
    theirs = folder / "theirs.gguf"
    imatrix: Path | None = None
    written_down: dict[str, int | str] = {}
    if importance is not None:
        imatrix = write_importance(folder / "imatrix.gguf", importance)
        written_down = {
            "quantize.imatrix.file": str(imatrix),
            "quantize.imatrix.dataset": "some text",
            "quantize.imatrix.entries_count": len(importance),
            "quantize.imatrix.chunks_count": 7,
        }
    peer.quantize(
        source,
        theirs,
        RECIPES[name].file_type,
        options=options,
        importance=importance,
        overrides=written_down,
        allow_requantize=requantize,
    )
    options = options or TypeOptions()
    if ours is None:
        ours = llmkit.quantize(
            source,
            name,
            output=folder / "ours.gguf",
            imatrix=imatrix,
            pure=options.pure,
            tensor_types=[f"{pattern.pattern}={type.name}" for pattern, type in options.tensor_types],
            output_type=options.output_type.name if options.output_type is not None else None,
            token_embedding_type=options.token_embedding_type.name
            if options.token_embedding_type is not None
            else None,
            allow_requantize=requantize,
            overwrite=True,
        ).path
    assert_same_file(ours, theirs)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-quantize writes down at most 127 bytes of the imatrix's path, so the tests give a short one."""
    monkeypatch.chdir(tmp_path)


def _cases() -> Iterator[object]:
    for model in MODELS:
        for name in QUANTIZING:
            for weighted in (False, True):
                if name == "q2_k_s" and not weighted:
                    continue  # needs an imatrix: tests/quantize/test_quantized_types.py
                quick = model in ("dense", "4 experts") and name in COMMON
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(model, name, weighted, id=f"{model}-{name}" + "-imatrix" * weighted, marks=marks)


@pytest.mark.parametrize(("model", "name", "weighted"), list(_cases()))
def test_tiny_models(model: str, name: str, weighted: bool) -> None:
    source = MODELS[model].write(Path("in.gguf"))
    compare(source, name, Path(), importance_of(MODELS[model].weights()) if weighted else None)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q4_k_m"])
def test_every_float_type_to_others(type: str, name: str) -> None:
    compare(TinyGGUF(type=type, n_layers=1).write(Path("in.gguf")), name, Path())


OPTIONS = {
    "pure": TypeOptions(pure=True),
    "tensor types": TypeOptions(
        tensor_types=(parse_tensor_type("attn_v=q8_0"), parse_tensor_type(r"blk\.[01]\.ffn_up=iq4_nl"))
    ),
    "output and embedding": TypeOptions(output_type=TensorType.Q5_K, token_embedding_type=TensorType.F16),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str) -> None:
    compare(TinyGGUF().write(Path("in.gguf")), "q4_k_m", Path(), options=OPTIONS[options])


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q5_1"])
def test_quantising_again(type: str) -> None:
    """Tensors that are to have the type they have are copied, the others decoded."""
    source = TinyGGUF(type=type).write(Path("in.gguf"))
    compare(source, "q4_0", Path(), requantize=True)
    compare(source, "q6_k", Path(), requantize=True)


def test_llama_quantize_reads_what_was_split() -> None:
    """From the parts of a split file both programs write what they write from the whole one."""
    whole = TinyGGUF(n_experts=4).write(Path("in.gguf"))
    parts = llmkit.quantize(whole, "bf16", output="split.gguf", split_size="1MB").paths
    assert len(parts) > 5
    ours = llmkit.quantize(parts[3], "q4_k_m", output="ours.gguf").path
    compare(parts[0], "q4_k_m", Path(), ours=ours)
    compare(whole, "q4_k_m", Path(), ours=ours)


@pytest.fixture(scope="module")
def smollm2_bf16(smollm2_dithered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llmkit.convert(smollm2_dithered, "gguf-bf16", output=tmp_path_factory.mktemp("smollm2") / "b.gguf").path


@pytest.fixture(scope="module")
def smollm2_importance(smollm2_bf16: Path) -> dict[str, Floats]:
    with open_gguf(smollm2_bf16) as file:
        shapes = {name: np.empty(tensor.shape, np.float32) for name, tensor in file.tensors.items()}
    return importance_of(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["", "imatrix"])
@pytest.mark.parametrize("name", COMMON)
def test_smollm2(name: str, weighted: bool, smollm2_bf16: Path, smollm2_importance: dict[str, Floats]) -> None:
    compare(smollm2_bf16, name, Path(), smollm2_importance if weighted else None)


@pytest.mark.slow
def test_converting_in_one_step_gives_the_tensors_of_two(smollm2_dithered: Path, smollm2_bf16: Path) -> None:
    with open_gguf(smollm2_bf16) as file:
        weights = {name: np.empty(tensor.shape, np.float32) for name, tensor in file.tensors.items()}
    imatrix = write_importance(Path("imatrix.gguf"), importance_of(weights))
    one = llmkit.convert(smollm2_dithered, "gguf-q4_k_m", output="one.gguf", imatrix=imatrix).path
    two = llmkit.quantize(smollm2_bf16, "q4_k_m", output="two.gguf", imatrix=imatrix).path
    with open_gguf(one) as a, open_gguf(two) as b:
        assert set(a.tensors) == set(b.tensors)
        assert dict(a.metadata) == dict(b.metadata)
        assert [name for name in a.tensors if not np.array_equal(a.raw(name), b.raw(name))] == []


@pytest.mark.slow
def test_quantising_again_what_others_quantised(smollm2_gguf: Path) -> None:
    """The packaged model, Q4_1 and Q8_0."""
    compare(smollm2_gguf, "q4_k_m", Path(), requantize=True)
