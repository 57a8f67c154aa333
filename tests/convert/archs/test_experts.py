"""Mixtures of experts: every weight arrives, from both layouts of checkpoints, and the types are llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.convert.archs import Presence
from llmkit.convert.archs.blocks import gated_experts, shared_experts
from llmkit.errors import FormatError, NonFiniteError, UnsupportedError
from llmkit.formats.gguf import open_gguf
from tests.tinymodels import TinyLlama, write_json

N_EXPERTS, N_FF, N_EMBD = 8, 256, 256
BASE = TinyLlama(
    n_ff=N_FF,
    dtype="F32",
    config={
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": N_EXPERTS,
        "num_experts_per_tok": 2,
    },
)
PARTS = {"w1": (N_FF, N_EMBD), "w2": (N_EMBD, N_FF), "w3": (N_FF, N_EMBD)}
Weights = dict[str, NDArray[np.float32]]


def weights() -> Weights:
    """As published: one tensor for each expert."""
    found = {name: values for name, values in BASE.weights().items() if ".mlp." not in name}
    random = np.random.default_rng(1)
    for i in range(BASE.n_layers):
        moe = f"model.layers.{i}.block_sparse_moe."
        found[f"{moe}gate.weight"] = random.standard_normal((N_EXPERTS, N_EMBD), np.float32)
        for e in range(N_EXPERTS):
            for part, shape in PARTS.items():
                found[f"{moe}experts.{e}.{part}.weight"] = random.standard_normal(shape, np.float32)
    return found


def joined(separate: Weights) -> Weights:
    """As transformers 5 has them."""
    found = {name: values for name, values in separate.items() if ".block_sparse_moe." not in name}
    for i in range(BASE.n_layers):
        moe, mlp = f"model.layers.{i}.block_sparse_moe.", f"model.layers.{i}.mlp."
        w1, w2, w3 = (stack(separate, i, part) for part in ("w1", "w2", "w3"))
        found[f"{mlp}gate.weight"] = separate[f"{moe}gate.weight"]
        found[f"{mlp}experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        found[f"{mlp}experts.down_proj"] = w2
    return found


def stack(separate: Weights, i: int, part: str) -> NDArray[np.float32]:
    return np.stack(
        [separate[f"model.layers.{i}.block_sparse_moe.experts.{e}.{part}.weight"] for e in range(N_EXPERTS)]
    )


def write(folder: Path, tensors: Weights, **config: Any) -> Path:
    BASE.write(folder)
    write_json(folder / "config.json", BASE.config_json() | config)
    BASE.write_weights(folder, tensors)
    return folder


@pytest.mark.parametrize("layout", ["each", "joined"])
def test_every_expert_arrives(layout: str, tmp_path: Path) -> None:
    separate = weights()
    folder = write(tmp_path / "model", separate if layout == "each" else joined(separate))
    llmkit.convert(folder, "gguf-f32", output=tmp_path / "out.gguf", memory="64KiB", threads=2)
    with open_gguf(tmp_path / "out.gguf") as file:
        for i in range(BASE.n_layers):
            for role, part in {"gate": "w1", "up": "w3", "down": "w2"}.items():
                name = f"blk.{i}.ffn_{role}_exps.weight"
                found = file.raw(name).view(np.float32).reshape(file.tensors[name].shape)
                assert np.array_equal(found, stack(separate, i, part)), name
        assert file.get("llama.expert_count") == N_EXPERTS
        assert file.get("llama.expert_used_count") == 2
        per_expert, total = 3 * N_FF * N_EMBD * BASE.n_layers, sum(w.size for w in separate.values())
        shared = total - N_EXPERTS * per_expert
        assert file.get("general.size_label") == gguf.size_label(total, shared, per_expert, N_EXPERTS) == "8x956K"


def test_both_layouts_give_the_same_tensors_in_every_type(tmp_path: Path) -> None:
    separate = weights()
    for layout, tensors in (("each", separate), ("joined", joined(separate))):
        folder = write(tmp_path / layout, tensors)
        for target in ("bf16", "q4_k_m"):
            llmkit.convert(folder, f"gguf-{target}", output=tmp_path / f"{layout}-{target}.gguf", verify=True)
    for target in ("bf16", "q4_k_m"):
        with open_gguf(tmp_path / f"each-{target}.gguf") as a, open_gguf(tmp_path / f"joined-{target}.gguf") as b:
            assert {n: (t.dtype, t.shape) for n, t in a.tensors.items()} == {
                n: (t.dtype, t.shape) for n, t in b.tensors.items()
            }
            assert all(np.array_equal(a.raw(name), b.raw(name)) for name in a.tensors)


def test_the_types_are_those_of_a_model_of_eight_experts(tmp_path: Path) -> None:
    """The recipe must know of the experts: it then gives attn_v and attn_k more bits."""
    folder = write(tmp_path / "model", weights())
    straight, whole, then = (tmp_path / name for name in ("straight.gguf", "whole.gguf", "then.gguf"))
    llmkit.convert(folder, "gguf-q4_k_m", output=straight)
    llmkit.convert(folder, "gguf-f32", output=whole)
    llmkit.quantize(whole, "q4_k_m", output=then)
    with open_gguf(straight) as a, open_gguf(then) as b:
        assert {n: t.dtype for n, t in a.tensors.items()} == {n: t.dtype for n, t in b.tensors.items()}
        assert all(np.array_equal(a.raw(name), b.raw(name)) for name in a.tensors)
        assert a.tensors["blk.0.attn_v.weight"].dtype == a.tensors["blk.0.attn_k.weight"].dtype == "Q8_0"


def test_a_missing_expert_and_one_too_many(tmp_path: Path) -> None:
    tensors = weights()
    last = "model.layers.1.block_sparse_moe.experts.7.w2.weight"
    del tensors[last]
    with pytest.raises(FormatError, match=r"experts.7.w2.weight.* missing; config.json says there are 8"):
        llmkit.convert(write(tmp_path / "less", tensors), "gguf-q8_0", dry_run=True)
    tensors = {n: w[:7] if n.endswith("moe.gate.weight") else w for n, w in weights().items()}
    with pytest.raises(UnsupportedError, match=r"6 tensors have no place.*experts.7"):
        llmkit.convert(write(tmp_path / "more", tensors, num_local_experts=7), "gguf-q8_0", dry_run=True)


def test_joined_experts_of_another_width_or_number(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", joined(weights()))
    for key, value, expected in (("intermediate_size", 512, "[8, 1024, 256]"), ("num_local_experts", 7, "[7, 256]")):
        write_json(folder / "config.json", BASE.config_json() | {key: value})
        with pytest.raises(FormatError) as caught:
            llmkit.convert(folder, "gguf-q8_0", dry_run=True)
        assert expected in str(caught.value)


def test_the_place_of_a_weight_is_that_in_the_joined_tensor(tmp_path: Path) -> None:
    tensors = joined(weights())
    tensors["model.layers.1.mlp.experts.gate_up_proj"][5, N_FF + 3, 7] = np.nan
    with pytest.raises(NonFiniteError, match=rf"layers.1.mlp.experts.gate_up_proj' holds nan at \[5, {N_FF + 3}, 7\]"):
        llmkit.convert(write(tmp_path / "model", tensors), "gguf-q8_0", output=tmp_path / "out.gguf")


def test_rules_of_experts_are_those_of_the_blocks_that_have_them() -> None:
    def every_second(h: object, i: int) -> bool:
        return i % 2 == 1

    rules = (*gated_experts(blocks=every_second), *shared_experts("mlp.shared.", gate="mlp.gate", blocks=every_second))
    assert [rule.role for rule in rules] == [
        *("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_inp_shexp.weight"),
        *("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
    ]
    anything: Any = None
    assert {rule.blocks(anything, 0) for rule in rules} == {False}
    assert {rule.blocks(anything, 1) for rule in rules} == {True}
    assert {rule.presence(anything) for rule in rules} == {Presence.REQUIRED}
