"""Tiny random GGUF models, written by the gguf package: dense ones and mixtures of experts, in any float type."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.gguf import Value, plan_layout
from llmkit.types import TensorType

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TinyGGUF:
    """What varies. Rows divide by 256 unless a test says otherwise; there is no tokenizer."""

    architecture: str = "llama"
    n_layers: int = 3
    n_embd: int = 256
    n_ff: int = 512
    n_heads: int = 4
    n_kv_heads: int = 2
    n_experts: int = 0
    tied: bool = False
    type: str = "BF16"
    seed: int = 0
    extra: dict[str, Floats] = field(default_factory=dict)

    def weights(self) -> dict[str, Floats]:
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int) -> Floats:
            values: Floats = rng.standard_normal(shape, np.float32) * np.float32(0.08)
            return values

        kv = self.n_embd * self.n_kv_heads // self.n_heads
        experts = (self.n_experts,) if self.n_experts else ()
        suffix = "_exps" if self.n_experts else ""
        weights = {"token_embd.weight": normal(96, self.n_embd), "output_norm.weight": 1 + normal(self.n_embd)}
        for i in range(self.n_layers):
            block = f"blk.{i}."
            weights |= {
                block + "attn_norm.weight": 1 + normal(self.n_embd),
                block + "attn_q.weight": normal(self.n_embd, self.n_embd),
                block + "attn_k.weight": normal(kv, self.n_embd),
                block + "attn_v.weight": normal(kv, self.n_embd),
                block + "attn_output.weight": normal(self.n_embd, self.n_embd),
                block + "ffn_norm.weight": 1 + normal(self.n_embd),
                block + f"ffn_gate{suffix}.weight": normal(*experts, self.n_ff, self.n_embd),
                block + f"ffn_up{suffix}.weight": normal(*experts, self.n_ff, self.n_embd),
                block + f"ffn_down{suffix}.weight": normal(*experts, self.n_embd, self.n_ff),
            }
            if self.n_experts:
                weights[block + "ffn_gate_inp.weight"] = normal(self.n_experts, self.n_embd)
        if not self.tied:
            weights["output.weight"] = normal(96, self.n_embd)
        return weights | self.extra

    def write(self, path: Path, weights: dict[str, Floats] | None = None) -> Path:
        """Write the model; vectors and routers are float32, as converters store them."""
        import gguf

        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name("Tiny")
        writer.add_context_length(64)
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layers)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_heads)
        writer.add_head_count_kv(self.n_kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_file_type(32)
        if self.n_experts:
            writer.add_expert_count(self.n_experts)
            writer.add_expert_used_count(2)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "naïve"])
        for name, values in (self.weights() if weights is None else weights).items():
            plain = values.ndim < 2 or "gate_inp" in name
            type = gguf.GGMLQuantizationType["F32" if plain else self.type]
            writer.add_tensor(name, gguf.quants.quantize(values, type), raw_dtype=type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def importance_of(weights: dict[str, Floats], seed: int = 1) -> dict[str, Floats]:
    """A random importance for every matrix but the embedding, float32 [experts, columns], with a few zeros."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, values in weights.items():
        if values.ndim < 2 or name == "token_embd.weight" or "gate_inp" in name:
            continue
        shape = (values.shape[0] if values.ndim == 3 else 1, values.shape[-1])
        found[name] = (rng.standard_normal(shape, np.float32) ** 2 * (rng.random(shape) > 0.02)).astype(np.float32)
    return found


def write_importance(path: Path, importance: dict[str, Floats]) -> Path:
    """An imatrix file whose sums over counts give `importance`; every expert has seen 4 tokens."""
    from llmkit.formats.imatrix import ColumnSums, ImatrixFile, write_imatrix

    entries = {
        name: ColumnSums(values * np.float32(4), np.full(len(values), 4, np.int64))
        for name, values in importance.items()
    }
    write_imatrix(path, ImatrixFile(path, ("some text",), 7, 512, entries), overwrite=True)
    return path


def write_ones(path: Path, metadata: dict[str, Value], tensors: dict[str, tuple[TensorType, tuple[int, ...]]]) -> Path:
    """A GGUF file of ones (in the bytes of whatever type)."""
    layout = plan_layout(metadata, [(name, type, shape) for name, (type, shape) in tensors.items()])
    one = np.float32(1).tobytes()
    path.write_bytes(layout.header + one * ((layout.total_bytes - len(layout.header)) // 4))
    return path
