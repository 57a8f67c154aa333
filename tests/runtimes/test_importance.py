"""Importance matrices from running models: against NumPy, PyTorch and the files of llama-imatrix itself."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.errors import EngineError
from llmkit.formats.imatrix import read_imatrix
from llmkit.progress import Silent
from llmkit.runtimes import _ggml_tensor, _llama_model
from llmkit.runtimes._square_sums import SquareSums, add_squares
from llmkit.runtimes.importance import Activations, collect, surprise, weight_name
from llmkit.runtimes.llamacpp import load
from tests.runtimes import tiny_gguf, tiny_moe
from tests.tinymodels import TinyLlama

# What the golden files of tests/formats/test_imatrix.py were made from.
TEXT = "In the beginning was the vocabulary, and every byte was a token; 3 x 7 = 21.\n" * 4
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "imatrix-gguf.bin"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.write_moe(tmp_path_factory.mktemp("moe") / "moe.gguf")


def run(path: Path, text: str = TEXT, **options: Any) -> Activations:
    return collect(path, text, Silent(), **{"chunk_size": 64, "n_threads": 1, **options})


def chunked(path: Path, n_chunks: int, size: int) -> np.ndarray:
    """The tokens that are run: BOS takes the first place of each chunk."""
    with load(path, n_threads=1) as session:
        ids = np.array(session.tokenize(TEXT, add_special=True)[: n_chunks * size], np.int32)
    ids[::size] = 1
    return ids


# Sums


def test_squares_are_added_row_after_row(rng: np.random.Generator) -> None:
    for n_rows, n_columns in ((1, 3), (64, 8), (200, 33), (517, 96)):
        rows = (rng.standard_normal((n_rows, n_columns)) * 10.0 ** rng.integers(-3, 4, (n_rows, 1))).astype(np.float32)
        sums = rng.random(n_columns, np.float32)
        expected = sums.copy()
        for row in rows:
            expected += row * row
        add_squares(sums, rows)
        assert sums.tobytes() == expected.tobytes()
        add_squares(sums, rows[:0])  # no rows, no change
        assert sums.tobytes() == expected.tobytes()


def test_routed_rows_are_added_choice_by_choice(rng: np.random.Generator) -> None:
    """The loop of llama-imatrix, written out."""
    n_experts, n_tokens, n_chosen, n_columns = 5, 40, 3, 16
    ids = np.array([rng.permutation(n_experts - 1)[:n_chosen] for _ in range(n_tokens)], np.int32)
    for n_slots in (1, n_chosen):
        rows = rng.standard_normal((n_tokens, n_slots, n_columns), np.float32)
        sums = np.zeros((n_experts, n_columns), np.float32)
        counts = [0] * n_experts
        for choice in range(n_chosen):
            for token in range(n_tokens):
                row = rows[token, choice % n_slots]
                sums[ids[token, choice]] += row * row
                counts[ids[token, choice]] += 1
        found = SquareSums(n_experts, n_columns)
        found.add_routed(rows, ids)
        assert found.sums.tobytes() == sums.tobytes()
        assert found.counts.tolist() == counts
        assert counts[-1] == 0


def test_slices_wrap_around_the_stack(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((1, 4, 7, 8), np.float32)
    found = SquareSums(2, 8)
    found.add(rows, (1, 2))
    expected = (rows[0].astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.sums, [expected[0] + expected[2], expected[1] + expected[3]], rtol=1e-5)
    assert found.counts.tolist() == [14, 14]


def test_copies_on_other_devices_count_under_the_weights_name() -> None:
    assert weight_name("CUDA0#blk.0.attn_k.weight#0") == "blk.0.attn_k.weight"
    assert weight_name("CUDA0#blk.0.attn_k.weight") == "blk.0.attn_k.weight"
    assert weight_name("blk.0.attn_k.weight") == "blk.0.attn_k.weight"


# Whole models


def test_a_mixture_of_experts_against_numpy(moe: Path) -> None:
    found = run(moe, process_output=True)
    ids = chunked(moe, found.n_chunks, 64)
    expected = tiny_moe.expected(ids)
    assert set(found.entries) == {*expected, "blk.0.attn_output.weight"}
    for name, (sums, counts) in expected.items():
        assert found.entries[name].counts.tolist() == counts, name
        np.testing.assert_allclose(found.entries[name].sums, sums, rtol=2e-5)
    assert found.entries["blk.0.ffn_up_exps.weight"].counts[tiny_moe.NEVER] == 0


def test_a_mixture_of_experts_against_llama_imatrix(moe: Path) -> None:
    """On one and the same processor the files are equal byte for byte; others add the products in another order."""
    found, golden = run(moe, process_output=True), read_imatrix(GOLDEN)
    assert list(found.entries) == list(golden.entries)
    assert (found.n_chunks, found.n_tokens) == (golden.n_chunks, golden.n_chunks * golden.chunk_size)
    for name, entry in golden.entries.items():
        assert found.entries[name].counts.tolist() == entry.counts.tolist()
        # Attention goes through a float16 cache.
        rtol = 2e-3 if "attn_output" in name else 2e-5
        np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=rtol)


def test_a_llama_against_pytorch(tmp_path: Path) -> None:
    """Hooks on the linear layers of transformers see what llama.cpp multiplies, in the same columns."""
    import torch
    from transformers import LlamaForCausalLM

    from llmkit import convert

    TinyLlama(dtype="F32").write(tmp_path / "tiny")
    gguf = convert(tmp_path / "tiny", "gguf-f32", output=tmp_path / "tiny.gguf").path
    found = run(gguf, process_output=True)
    with load(gguf, n_threads=1) as session:
        ids = session.tokenize(TEXT, add_special=True)[: found.n_tokens]
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    sums: dict[str, np.ndarray] = {}

    def watch(name: str) -> Any:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
            rows = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + (rows**2).sum(dim=0).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            model(torch.tensor([ids[start : start + 64]]))
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    names = {f"blk.{i}.{ours}.weight": f"model.layers.{i}.{theirs}" for i in range(2) for ours, theirs in parts.items()}
    names["output.weight"] = "lm_head"
    assert set(found.entries) == set(names)
    for ours, theirs in names.items():
        # llama.cpp keeps keys and values in float16.
        np.testing.assert_allclose(found.entries[ours].sums[0], sums[theirs], rtol=5e-3, err_msg=ours)
        assert found.entries[ours].counts.tolist() == [len(ids)]


def test_products_against_pytorch(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from llmkit import convert

    TinyLlama(dtype="F32").write(tmp_path / "tiny")
    gguf = convert(tmp_path / "tiny", "gguf-f32", output=tmp_path / "tiny.gguf").path
    plain, found = (run(gguf, process_output=True, products=width) for width in (None, 96))
    assert plain.products == {}
    # One of those that multiply the same: queries, keys and values; gate and up.
    ours = {name.removeprefix("blk.0.") for name in found.products if "blk.1" not in name}
    assert len(ours) == 5
    assert {"attn_output.weight", "ffn_down.weight", "output.weight"} < ours
    for name, entry in plain.entries.items():
        assert entry.sums.tobytes() == found.entries[name].sums.tobytes()
    with load(gguf, n_threads=1) as session:
        ids = session.tokenize(TEXT, add_special=True)[: found.n_tokens]
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    seen: list[np.ndarray] = []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, x, _y: seen.append(x[0][0].double().numpy()))
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            model(torch.tensor([ids[start : start + 64]]))
    rows = np.pad(np.concatenate(seen), ((0, 0), (0, 64))).reshape(-1, 6, 96)
    expected = np.einsum("tri,trj->rij", rows, rows)
    down = found.products["blk.1.ffn_down.weight"]
    assert down.shape == (6, 96, 96)
    np.testing.assert_allclose(down, expected, atol=5e-3 * expected.max())
    whole = run(gguf, products=1000).products["blk.1.ffn_down.weight"]
    np.testing.assert_allclose(whole[0, :96, :96], down[0], rtol=1e-4, atol=1e-4 * expected.max())


def test_experts_have_no_products(moe: Path) -> None:
    assert not any("_exps" in name for name in run(moe, products=32).products)


def test_the_output_matrix_is_left_out_unless_asked_for(moe: Path) -> None:
    assert "output.weight" not in run(moe).entries


def test_chunks_longer_than_a_pass_are_split_evenly(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens in passes of at most 48: three of 34, 34 and 32, none under the limit of small products."""
    whole = run(moe, chunk_size=100, max_chunks=2, process_output=True)
    monkeypatch.setattr("llmkit.runtimes.importance._MOST_TOKENS", 48)
    parts = run(moe, chunk_size=100, max_chunks=2, process_output=True)
    assert math.isclose(parts.perplexity, whole.perplexity, rel_tol=1e-4)
    for name, entry in whole.entries.items():
        assert parts.entries[name].counts.tolist() == entry.counts.tolist()
        np.testing.assert_allclose(parts.entries[name].sums, entry.sums, rtol=2e-3)


def test_the_perplexity_is_that_of_the_second_halves(moe: Path) -> None:
    found = run(moe)
    ids = chunked(moe, found.n_chunks, 64)
    surprises = []
    with load(moe, n_threads=1) as session:
        original = np.array(session.tokenize(TEXT, add_special=True), np.int32)
        for start in range(0, found.n_tokens, 64):
            logits = session.logits(ids[start : start + 64].tolist()).astype(np.float64)
            for position in range(32, 63):
                row = logits[position] - logits[position].max()
                surprises.append(math.log(np.exp(row).sum()) - row[original[start + position + 1]])
    assert len(surprises) == found.n_chunks * 31
    assert math.isclose(found.perplexity, math.exp(np.mean(surprises)), rel_tol=1e-3)
    error = found.perplexity * np.std(surprises) / math.sqrt(len(surprises) - 1)
    assert math.isclose(found.perplexity_error, error, rel_tol=1e-2)


def test_surprise_of_hopeless_targets_is_finite() -> None:
    logits = np.array([[0.0, -1e4], [1e30, 0.0]], np.float32)
    assert surprise(logits, [1, 0]).tolist() == [1e4, 0.0]


def test_smollm2_gives_plausible_importance(smollm2_gguf: Path) -> None:
    from pydoc_data.topics import topics

    found = collect(smollm2_gguf, topics["strings"], Silent(), chunk_size=64, max_chunks=2)
    assert len(found.entries) == 210
    assert {entry.sums.shape for entry in found.entries.values()} == {(1, 576), (1, 1536)}
    assert all(entry.counts.tolist() == [128] and (entry.sums > 0).all() for entry in found.entries.values())
    assert 1 < found.perplexity < 100
    first = found.entries
    for part in ("attn_k", "attn_v"):  # one input, three matrices
        assert first[f"blk.7.{part}.weight"].sums.tobytes() == first["blk.7.attn_q.weight"].sums.tobytes()


# What goes wrong


def test_too_little_text(moe: Path) -> None:
    with pytest.raises(EngineError, match=r"the text has 6 tokens; one chunk needs 64.*longer text, or shorter chunks"):
        run(moe, "text")


def test_chunks_too_short_to_see_anything(moe: Path) -> None:
    with pytest.raises(EngineError, match="chunks of 8 tokens are too short: at least 16"):
        run(moe, chunk_size=8)


def test_more_chunks_than_there_are(moe: Path) -> None:
    assert run(moe, max_chunks=1000).n_chunks == 4
    assert run(moe, max_chunks=2).n_chunks == 2


def test_chunks_longer_than_the_training_context(moe: Path) -> None:
    (note,) = run(moe, chunk_size=256).notes
    assert note == "chunks of 256 tokens are longer than the 128 the model was trained for"


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    path = tiny_gguf.write_llama(tmp_path / "x.gguf", text=False)
    with pytest.raises(EngineError, match="no tokenizer"):
        run(path)


def test_activations_that_overflow_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tiny_moe.weights()
    good["blk.0.ffn_norm.weight"] = np.full(tiny_gguf.N_EMBD, 1e30, np.float32)
    monkeypatch.setattr(tiny_moe, "weights", lambda: good)
    with pytest.raises(EngineError, match=r"'blk\.0\.ffn_.*': the activations it multiplies are not finite"):
        run(tiny_moe.write_moe(tmp_path / "x.gguf"))


def test_logits_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tiny_moe.weights()
    damaged["output.weight"][7, 3] = np.nan
    monkeypatch.setattr(tiny_moe, "weights", lambda: damaged)
    with pytest.raises(EngineError, match="the model's logits are not finite"):
        run(tiny_moe.write_moe(tmp_path / "x.gguf"))


def test_a_model_that_is_always_wrong_has_a_perplexity_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tiny_moe.weights()
    wrong["output.weight"] *= np.float32(1e6)
    monkeypatch.setattr(tiny_moe, "weights", lambda: wrong)
    found = run(tiny_moe.write_moe(tmp_path / "x.gguf"))
    assert found.perplexity > 1e300
    assert math.isfinite(found.perplexity)


def test_an_error_within_the_callback_comes_out(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("from within")

    monkeypatch.setattr(SquareSums, "add_routed", fail)
    with pytest.raises(RuntimeError, match="from within"):
        run(moe)
    monkeypatch.undo()
    assert run(moe).n_chunks == 4


def test_ctrl_c_within_a_chunk(smollm2_gguf: Path) -> None:
    """Long before the chunk is through."""
    from pydoc_data.topics import topics

    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        collect(smollm2_gguf, "\n".join(topics.values()), Silent(), chunk_size=4096, n_threads=1)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_may_do_it(moe: Path) -> None:
    found: list[Activations] = []
    thread = threading.Thread(target=lambda: found.append(run(moe)))
    thread.start()
    thread.join(60)
    assert found[0].n_chunks == 4


@pytest.mark.parametrize("changed", ["flags", "buffer", "ne"])
def test_tensors_laid_out_otherwise_are_refused(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the installed library had a field less, or one more, than the struct that is known here."""
    import ctypes

    class Other(ctypes.Structure):
        pass

    fields = []
    for name, kind, *_ in _ggml_tensor._Struct._fields_:
        if name == changed == "buffer":
            continue
        fields.append((name, ctypes.POINTER(Other) * 10 if name == "src" else kind))
        if name == changed:
            fields.append(("extra", ctypes.c_int64))
    Other._fields_ = fields
    monkeypatch.setattr(_ggml_tensor, "_Struct", Other)
    with pytest.raises(EngineError, match="laid out otherwise"):
        _ggml_tensor.open_reader(_llama_model.bindings())
