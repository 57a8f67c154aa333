"""Models as recipes see them: the shapes and tensor lists of many architectures, without weights."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.quantize.recipes import ModelShape

TensorList = list[tuple[str, tuple[int, ...]]]

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SHARED_EXPERTS = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")


def tensor_list(
    n_layers: int,
    parts: Sequence[str] = (*ATTENTION, *FFN),
    *,
    width: int = 256,
    tied: bool = False,
    n_experts: int = 0,
    whole: Sequence[str] = (),
    prefix: str = "",
) -> TensorList:
    """The tensors of a model: `parts` in every block, `whole` names outside, rows of `width` weights.

    Parts that end in `_exps` have three dimensions. Every block also has what no recipe quantises.
    """
    tensors: TensorList = [("token_embd.weight", (320, width)), ("output_norm.weight", (width,))]
    if not tied:
        tensors.append(("output.weight", (320, width)))
    tensors += [(name, (64, width)) for name in whole]
    for i in range(n_layers):
        block = f"{prefix}blk.{i}."
        tensors += [(f"{block}attn_norm.weight", (width,)), (f"{block}attn_q.bias", (width,))]
        if n_experts > 1:
            tensors.append((f"{block}ffn_gate_inp.weight", (n_experts, width)))
        for part in parts:
            shape = (n_experts, 64, width) if part.endswith("_exps") else (64, width)
            tensors.append((f"{block}{part}.weight", shape))
    return list(dict(tensors).items())


def old_mixtral(n_layers: int, width: int = 256) -> TensorList:
    """Eight experts as matrices of their own, in an order that does not follow the blocks."""
    experts = tuple(f"{part}.{expert}" for expert in range(8) for part in FFN)
    tensors = tensor_list(n_layers, (*ATTENTION, *experts), width=width, n_experts=8)
    return tensors[::-1]


# Names that some architecture keeps as they are, with neighbours that it does not keep.
ODD_NAMES = (
    *("position_embd.weight", "token_types.weight", "v.position_embd.weight", "v.patch_embd.weight"),
    *("per_layer_token_embd.weight", "per_layer_model_proj.weight", "altup_proj.weight", "blk.0.laurel_l.weight"),
    *("blk.0.ssm_conv1d.weight", "blk.0.ssm_conv1d_q.weight", "blk.0.ssm_in.weight", "blk.0.ssm_f_a.weight"),
    *("blk.0.ssm_beta.weight", "blk.0.ssm_g_b.weight", "blk.0.shortconv.conv.weight", "blk.0.shortconv.in_proj.weight"),
    *("blk.0.ffn_gate_inp_shexp.weight", "blk.0.ffn_gate_tid2eid.weight", "blk.0.attn_rel_b.weight"),
    *(f"blk.0.time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"blk.0.time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused", "key", "lerp_k")),
    *("blk.0.indexer.k_proj.weight", "blk.0.indexer.q_proj.weight", "blk.0.indexer.attn_k.weight"),
    *("blk.0.indexer.attn_q_b.weight", "blk.0.indexer.proj.weight", "blk.0.indexer_compressor_gate.weight"),
    *("blk.0.indexer_compressor_ape.weight", "blk.0.hc_attn_fn.weight", "blk.0.attn_k_b.weight"),
    *("blk.0.attn_v_b.weight", "blk.0.attn_kv_a_mqa.weight", "blk.0.nextn.eh_proj.weight"),
    *("v.sam.pos_embd.weight", "v.sam.neck.0.weight", "v.sam.net_2.weight", "v.blk.0.rel_pos_w.weight"),
    *("mm.patch_merger.weight", "mm.0.weight", "mm.a.code_embd.weight", "a.rvq.codebook.0.weight"),
    *("cls.weight", "cls.output.weight", "output.bias", "blk.0.attn_sinks", "blk.0.attn_q_norm.weight"),
)


def model(n_layers: int, architecture: str = "llama", *, gqa: int = 1, n_experts: int = 0) -> ModelShape:
    return ModelShape(n_layers, 8, 8 // gqa, n_experts, architecture)


# Around the boundaries of the mixtures: eighths, sixteenths, every third, the first two and four.
LAYER_COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 48, 79, 80)

MODELS: dict[str, tuple[ModelShape, TensorList]] = {
    "llama": (model(10), tensor_list(10)),
    "llama, 4 heads to one, tied": (model(17, gqa=4), tensor_list(17, tied=True)),
    "llama of 80 blocks, 8 heads to one": (model(80, gqa=8), tensor_list(80)),
    "llama without KV heads in the first block": (ModelShape(5, 8, 0), tensor_list(5)),
    "rows of 96": (model(17), tensor_list(17, width=96)),
    "rows of 96, tied": (model(17, gqa=2), tensor_list(17, width=96, tied=True)),
    "rows of 80": (model(9), tensor_list(9, width=80)),
    "falcon": (model(32, "falcon", gqa=8), tensor_list(32, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))),
    "falcon of 60 blocks, rows of 96": (
        model(60, "falcon"),
        tensor_list(60, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"), width=96),
    ),
    "falcon with eight experts": (
        model(33, "falcon", n_experts=8),
        tensor_list(33, (*ATTENTION, *EXPERTS), n_experts=8),
    ),
    "mixtral": (model(32, gqa=4, n_experts=8), tensor_list(32, (*ATTENTION, *EXPERTS), n_experts=8)),
    "mixtral with experts apart": (model(17, gqa=4, n_experts=8), old_mixtral(17)),
    "eight experts, 80 blocks": (model(80, gqa=8, n_experts=8), tensor_list(80, (*ATTENTION, *EXPERTS), n_experts=8)),
    "two experts apart": (
        model(16, n_experts=2),
        tensor_list(16, (*ATTENTION, "ffn_down.0", "ffn_down.1"), n_experts=2),
    ),
    "one expert": (model(9, n_experts=1), tensor_list(9)),
    "128 experts": (
        model(48, "qwen3moe", gqa=4, n_experts=128),
        tensor_list(48, (*ATTENTION, *EXPERTS), n_experts=128),
    ),
    "shared experts": (
        model(24, "qwen2moe", n_experts=60),
        tensor_list(24, (*ATTENTION, *EXPERTS, *SHARED_EXPERTS), n_experts=60),
    ),
    "deepseek2": (
        model(27, "deepseek2", n_experts=64),
        tensor_list(
            27,
            ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_output", *EXPERTS, *SHARED_EXPERTS),
            n_experts=64,
        ),
    ),
    "bailingmoe3": (
        model(12, "bailingmoe3", n_experts=16),
        tensor_list(12, (*ATTENTION, "attn_k_b_exps", *EXPERTS), n_experts=16),
    ),
    "glm5-next": (
        model(8, "glm5-next", n_experts=16),
        tensor_list(8, ("attn_q_a", "attn_q_b", "attn_v", *EXPERTS), n_experts=16, whole=ODD_NAMES),
    ),
    "gemma3, tied": (model(34, "gemma3", gqa=2), tensor_list(34, tied=True)),
    "gemma3n": (model(35, "gemma3n", gqa=4), tensor_list(35, tied=True, whole=ODD_NAMES)),
    "bert": (model(12, "bert"), tensor_list(12, (*ATTENTION, "ffn_up", "ffn_down"), tied=True, whole=ODD_NAMES)),
    "gpt2": (model(12, "gpt2"), tensor_list(12, ("attn_qkv", "attn_output", *FFN), whole=ODD_NAMES)),
    "rwkv7": (model(12, "rwkv7"), tensor_list(12, ("time_mix_output", "channel_mix_value"), whole=ODD_NAMES)),
    "t5": (model(12, "t5"), tensor_list(12, prefix="enc.") + tensor_list(12, prefix="dec.")[3:]),
}
