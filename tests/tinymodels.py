"""Tiny random checkpoints of the Llama family, written without llmkit: every variation a test may ask for."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_VOCAB = 320


@dataclass(frozen=True)
class TinyLlama:
    """What varies. Sizes are chosen so that rows divide by 256 unless a test says otherwise."""

    n_layers: int = 2
    n_embd: int = 256
    n_ff: int = 512
    n_heads: int = 4
    n_kv_heads: int = 2
    tied: bool = False
    bias: bool = False
    dtype: str = "BF16"
    n_shards: int = 1
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    head_width: int | None = None

    @property
    def head_dim(self) -> int:
        return self.head_width or self.n_embd // self.n_heads

    def write(self, folder: Path) -> Path:
        """Write config, weights and tokenizer to `folder`, created if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config_json())
        self.write_weights(folder)
        write_tokenizer(folder)
        return folder

    def config_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.bias,
            "mlp_bias": self.bias,
            "vocab_size": N_VOCAB,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[self.dtype],
        }
        values.update(self.config)
        return {key: value for key, value in values.items() if value is not ...}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, self.n_embd)}
        for i in range(self.n_layers):
            block = f"model.layers.{i}."
            for part, rows, columns in (
                ("self_attn.q_proj", heads, self.n_embd),
                ("self_attn.k_proj", kv_heads, self.n_embd),
                ("self_attn.v_proj", kv_heads, self.n_embd),
                ("self_attn.o_proj", self.n_embd, heads),
                ("mlp.gate_proj", self.n_ff, self.n_embd),
                ("mlp.up_proj", self.n_ff, self.n_embd),
                ("mlp.down_proj", self.n_embd, self.n_ff),
            ):
                shapes[f"{block}{part}.weight"] = (rows, columns)
                if self.bias:
                    shapes[f"{block}{part}.bias"] = (rows,)
            shapes[f"{block}input_layernorm.weight"] = (self.n_embd,)
            shapes[f"{block}post_attention_layernorm.weight"] = (self.n_embd,)
        shapes["model.norm.weight"] = (self.n_embd,)
        if not self.tied:
            shapes["lm_head.weight"] = (N_VOCAB, self.n_embd)
        return shapes

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights as float32, exact in the checkpoint's dtype."""
        rng = np.random.default_rng(self.seed)
        weights = {}
        for name, shape in self.shapes().items():
            values = rng.standard_normal(shape, np.float32) * np.float32(0.08)
            weights[name] = values + np.float32(1) if "norm" in name else values
        return {name: decode(encode(values, self.dtype), self.dtype, values.shape) for name, values in weights.items()}

    def write_weights(self, folder: Path, weights: dict[str, NDArray[np.float32]] | None = None) -> None:
        weights = self.weights() if weights is None else weights
        names = list(weights)
        if self.n_shards == 1:
            write_safetensors(folder / "model.safetensors", weights, self.dtype)
            return
        weight_map: dict[str, str] = {}
        for shard in range(self.n_shards):
            file = f"model-{shard + 1:05d}-of-{self.n_shards:05d}.safetensors"
            part = {name: weights[name] for name in names[shard :: self.n_shards]}
            write_safetensors(folder / file, part, self.dtype)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """Bytes of `values` in a SafeTensors dtype; BF16 is cut off, which is exact enough for random weights."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()


def decode(data: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The inverse of `encode`."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    values: NDArray[np.float32] = np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)
    return values.reshape(shape)


def write_safetensors(path: Path, weights: dict[str, NDArray[np.float32]], dtype: str) -> None:
    write_raw_safetensors(
        path, {name: (dtype, values.shape, encode(values, dtype)) for name, values in weights.items()}
    )


def write_raw_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """The format by hand, so that a test can write what the safetensors package would refuse to."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(_tokenizer_json())
    write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"},
    )


@cache
def _tokenizer_json() -> str:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenizer, trained on the standard library's own prose."""
    from pydoc_data.topics import topics

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=[AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics["integers"], topics["strings"], topics["for"]], trainer)
    return str(tokenizer.to_str())
