"""Executing a plan: the same bytes however it is done, and nothing at all when something is wrong."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.convert.chunks import cut
from llmkit.errors import FormatError, LlmkitError, NonFiniteError
from llmkit.formats.gguf import open_gguf
from tests.tinygguf import TinyGGUF, importance_of, write_importance
from tests.tinymodels import TinyLlama, decode, write_safetensors

TARGETS = ["gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_k_m"]


@pytest.mark.parametrize("target", TARGETS)
def test_threads_and_memory_do_not_change_a_byte(target: str, tmp_path: Path) -> None:
    folder = TinyLlama(n_shards=2, bias=True).write(tmp_path / "model")
    files = []
    for threads, memory in ((1, "1GiB"), (3, "4MiB"), (2, "1MiB")):
        path = tmp_path / f"{threads}.gguf"
        llmkit.convert(folder, target, output=path, threads=threads, memory=memory)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("to", ["q4_k_m", "q4_0", "bf16"])
def test_threads_and_memory_do_not_change_a_byte_with_experts(to: str, tmp_path: Path) -> None:
    """Not with an importance of each expert's own either; the small budgets cut within the rows of an expert."""
    model = TinyGGUF(n_layers=1, n_experts=3)
    source = model.write(tmp_path / "in.gguf")
    imatrix = write_importance(tmp_path / "imatrix.gguf", importance_of(model.weights()))
    files = []
    for threads, memory in ((1, "1GiB"), (3, "600KiB"), (2, "100KiB")):
        path = tmp_path / f"{threads}.gguf"
        llmkit.quantize(source, to, output=path, imatrix=imatrix, threads=threads, memory=memory, verify=True)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_no_chunk_crosses_from_one_expert_to_the_next(tmp_path: Path) -> None:
    model = TinyGGUF(n_layers=1, n_experts=3)
    source = model.write(tmp_path / "in.gguf")
    imatrix = write_importance(tmp_path / "imatrix.gguf", importance_of(model.weights()))
    plan = llmkit.quantize(source, "q4_k_m", imatrix=imatrix, output=tmp_path / "o.gguf", dry_run=True).plan
    rows = {t.name: np.zeros(t.matrix[0], int) for t in plan.tensors}
    for chunk in cut(plan, 500_000):
        rows[chunk.tensor.name][chunk.first_row : chunk.first_row + chunk.n_rows] += 1
        if chunk.tensor.importance is not None:
            per_expert = chunk.tensor.shape[-2]
            expert = chunk.first_row // per_expert
            assert (chunk.first_row + chunk.n_rows - 1) // per_expert == expert
            assert np.array_equal(chunk.importance, chunk.tensor.importance[expert])
    assert all((counts == 1).all() for counts in rows.values())


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight"])
def test_a_weight_of_a_gguf_file_that_is_not_finite_is_named(name: str, tmp_path: Path) -> None:
    """In tensors that are encoded and in those that are copied."""
    model = TinyGGUF(n_layers=1, n_experts=3, type="F32")
    weights = model.weights()
    place = (2, 5, 7) if weights[name].ndim == 3 else (2, 7)
    weights[name][place] = np.nan
    source = model.write(tmp_path / "in.gguf", weights)
    with pytest.raises(NonFiniteError) as caught:
        llmkit.quantize(source, "q4_k_m", output=tmp_path / "out.gguf")
    assert f"in.gguf: tensor {name!r} holds nan at {list(place)};" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]
    llmkit.quantize(source, "q4_k_m", output=tmp_path / "out.gguf", allow_nonfinite=True)


def test_a_quantised_tensor_with_a_scale_that_is_not_finite(tmp_path: Path) -> None:
    model = TinyGGUF(n_layers=1, type="Q8_0")
    source = model.write(tmp_path / "in.gguf")
    with open_gguf(source) as file:
        offset = file.tensors["blk.0.attn_q.weight"].offset
    with source.open("r+b") as writable:
        writable.seek(offset + 34 * 8)  # the first block of the second row
        writable.write(np.float16(np.inf).tobytes())
    for to in ("q8_0", "q4_0"):
        with pytest.raises(NonFiniteError, match=r"'blk.0.attn_q.weight' holds (-?inf|nan) at \[1, 0\]"):
            llmkit.quantize(source, to, output=tmp_path / "out.gguf", allow_requantize=True)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_weight_arrives_where_llama_cpp_expects_it(dtype: str, tmp_path: Path) -> None:
    model = TinyLlama(dtype=dtype, bias=True, n_heads=8, n_kv_heads=2)
    llmkit.convert(model.write(tmp_path / "model"), "gguf-f32", output=tmp_path / "out.gguf")
    weights = model.weights()
    with open_gguf(tmp_path / "out.gguf") as file:
        for i in range(model.n_layers):
            for part, heads in (("q", 8), ("k", 2)):
                for suffix in ("weight", "bias"):
                    source = weights[f"model.layers.{i}.self_attn.{part}_proj.{suffix}"]
                    # Row j of a head's first half and of its second become rows 2j and 2j + 1.
                    halves = source.reshape(heads, 2, model.head_dim // 2, -1)
                    expected = halves.swapaxes(1, 2).reshape(source.shape)
                    assert np.array_equal(f32(file, f"blk.{i}.attn_{part}.{suffix}"), expected)
            up = weights[f"model.layers.{i}.mlp.up_proj.weight"]
            assert np.array_equal(f32(file, f"blk.{i}.ffn_up.weight"), up)
        assert np.array_equal(f32(file, "output.weight"), weights["lm_head.weight"])


def f32(file: Any, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = file.raw(name).view(np.float32).reshape(file.tensors[name].shape)
    return values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_weight_that_is_not_finite_is_named(dtype: str, value: float, tmp_path: Path) -> None:
    model = TinyLlama(dtype=dtype)
    folder = model.write(tmp_path / "model")
    weights = model.weights()
    weights["model.layers.1.mlp.down_proj.weight"][7, 300] = value
    model.write_weights(folder, weights)
    for target in TARGETS:
        with pytest.raises(NonFiniteError) as caught:
            llmkit.convert(folder, target, output=tmp_path / "out.gguf")
        message = str(caught.value)
        for words in ("model.safetensors", "model.layers.1.mlp.down_proj.weight", "[7, 300]", "--allow"):
            assert words in message
        assert str(np.float32(value)) in message
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_allow_nonfinite_carries_the_values_on(tmp_path: Path) -> None:
    model = TinyLlama(dtype="F32")
    folder = model.write(tmp_path / "model")
    weights = model.weights()
    weights["model.norm.weight"][3] = np.inf
    model.write_weights(folder, weights)
    llmkit.convert(folder, "gguf-q8_0", output=tmp_path / "out.gguf", allow_nonfinite=True)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert f32(file, "output_norm.weight")[3] == np.inf


def test_the_place_of_a_weight_is_that_in_the_checkpoint(tmp_path: Path) -> None:
    model = TinyLlama(dtype="F32", bias=True)
    folder = model.write(tmp_path / "model")
    for name, place in (("q_proj.weight", (70, 3)), ("k_proj.bias", (65,)), ("v_proj.bias", (9,))):
        weights = model.weights()
        weights[f"model.layers.0.self_attn.{name}"][place] = np.nan
        model.write_weights(folder, weights)
        with pytest.raises(NonFiniteError) as caught:
            llmkit.convert(folder, "gguf-q8_0", output=tmp_path / "out.gguf")
        assert f"{name}' holds nan at {list(place)};" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("gguf-f16", 7e4),
        ("gguf-q4_0", 1e6),
        ("gguf-q4_1", 2e6),
        ("gguf-q8_0", 1e8),
        ("gguf-q4_k_m", 3e9),
        ("gguf-q6_k", 3e10),
        ("gguf-bf16", 3.4e38),
    ],
)
def test_finite_values_that_16_bit_floats_cannot_hold_are_refused(target: str, value: float, tmp_path: Path) -> None:
    model = TinyLlama(dtype="F32")
    folder = model.write(tmp_path / "model")
    weights = model.weights()
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = value
    model.write_weights(folder, weights)
    with pytest.raises(NonFiniteError, match=r"up_proj.weight' holds values too large for .*gguf-f32"):
        llmkit.convert(folder, target, output=tmp_path / "out.gguf")
    llmkit.convert(folder, "gguf-f32", output=tmp_path / "out.gguf")


def test_a_budget_too_small_for_one_row_says_what_is_needed(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "model")
    for dry_run in (True, False):  # a plan that cannot be executed is none
        with pytest.raises(LlmkitError, match=r"a row of tensor 'blk.0.ffn_down.weight' needs 8,192 bytes"):
            llmkit.convert(folder, "gguf-q4_0", output=tmp_path / "out.gguf", memory="8000", dry_run=dry_run)
    assert not (tmp_path / "out.gguf").exists()


def test_more_threads_than_the_budget_has_room_for(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "model")
    result = llmkit.convert(folder, "gguf-q4_0", output=tmp_path / "out.gguf", memory="20KiB", threads=64)
    assert result.path.stat().st_size == result.plan.total_bytes


def test_an_input_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.execute import execute
    from llmkit.convert.gguf_target import plan_gguf
    from llmkit.progress import Silent
    from llmkit.quantize.recipes import find_recipe

    folder = TinyLlama().write(tmp_path / "model")
    plan = plan_gguf(open_checkpoint(folder), find_recipe("q8_0"))
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"model.safetensors: tensor .* too early"):
        execute(plan, tmp_path / "out.gguf", threads=2, memory=2**28, progress=Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("to", ["q4_k_m", "f16", "f32"])
def test_memory_of_the_buffers_stays_within_the_budget(to: str, dtype: str, tmp_path: Path) -> None:
    """The chunks are cut so that all buffers of all threads together fit, when writing and when verifying."""
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.chunks import Buffers
    from llmkit.convert.execute import execute
    from llmkit.convert.gguf_target import plan_gguf
    from llmkit.progress import Silent
    from llmkit.quantize.recipes import find_recipe

    folder = TinyLlama(n_embd=1024, n_ff=2048, n_heads=4, n_kv_heads=4, dtype=dtype).write(tmp_path / "model")
    plan = plan_gguf(open_checkpoint(folder), find_recipe(to))
    sizes: dict[tuple[int, str], int] = {}
    original = Buffers.get

    def get(self: Buffers, name: str, n_bytes: int) -> NDArray[np.uint8]:
        key = (threading.get_ident(), name)
        sizes[key] = max(sizes.get(key, 0), n_bytes)
        return original(self, name, n_bytes)

    peaks: list[int] = []

    class Phases(Silent):
        def finish(self) -> None:
            peaks.append(sum(sizes.values()))
            sizes.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffers, "get", get)
        execute(plan, tmp_path / "out.gguf", threads=2, memory=9 * 2**20, progress=Phases(), verified=True)
    assert len(peaks) == 2
    assert all(0 < peak <= 9 * 2**20 for peak in peaks)


@pytest.mark.parametrize(
    ("size", "expected"), [("1GiB", 2**30), ("512MiB", 2**29), ("2GB", 2 * 10**9), ("1.5K", 1500), (7, 7), ("64", 64)]
)
def test_sizes(size: int | str, expected: int) -> None:
    from llmkit.arguments import parse_bytes

    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1", "1TB", "1 2", "nan", "1e3", "9" * 400, 0, -5, 2.5])
def test_sizes_that_are_none(size: Any) -> None:
    from llmkit.arguments import parse_bytes

    with pytest.raises(LlmkitError, match="is not a size"):
        parse_bytes(size)


def test_the_helpers_of_these_tests_agree_with_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = TinyLlama(dtype="BF16", n_layers=1).weights()
    write_safetensors(tmp_path / "w.safetensors", weights, "BF16")
    for name, tensor in load_file(tmp_path / "w.safetensors").items():
        assert tensor.dtype is torch.bfloat16
        assert np.array_equal(tensor.to(torch.float32).numpy(), weights[name])
    assert decode(b"\x80\x3f", "BF16", (1,))[0] == 1.0


def test_no_worker_writes_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it comes: the file's descriptor is closed next, and its number may then mean another file."""
    from llmkit.convert import chunks as module
    from llmkit.formats.output import OutputFile

    folder = TinyLlama(n_layers=8).write(tmp_path / "model")
    writing = threading.Event()
    write_at = OutputFile.write_at
    returned = threading.Event()
    late: list[int] = []

    def slow_write(self: OutputFile, data: memoryview | bytes, offset: int) -> None:
        writing.set()
        time.sleep(0.05)
        if returned.is_set():
            late.append(offset)
        write_at(self, data, offset)

    waits = iter([KeyboardInterrupt, KeyboardInterrupt])

    def interrupted_wait(futures: Any) -> Any:
        writing.wait()
        for interrupt in waits:
            raise interrupt
        return wait(futures)

    monkeypatch.setattr(OutputFile, "write_at", slow_write)
    monkeypatch.setattr(module, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        llmkit.convert(folder, "gguf-q8_0", output=tmp_path / "out.gguf", threads=3)
    returned.set()
    time.sleep(0.2)
    assert late == []
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
