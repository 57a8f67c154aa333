"""A tiny mixture of experts whose every activation NumPy can follow: one block, and attention that adds nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.runtimes.tiny_gguf import N_CONTEXT, N_EMBD, _finish, _vocabulary

N_FF = 64
N_EXPERTS = 4
N_USED = 2
NEVER = 2  # the expert that no token reaches
EPS = 1e-5
N_VOCAB = 260

Arrays = dict[str, NDArray[np.float32]]


def weights() -> Arrays:
    rng = np.random.default_rng(11)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    embedding = rng.standard_normal((N_VOCAB, N_EMBD), np.float32)
    embedding[:, 0] = 3  # what the router sees in every token,
    router = 2 * matrix(N_EXPERTS, N_EMBD)
    router[NEVER, 0] = -50  # and shuns
    ones = np.ones(N_EMBD, np.float32)
    return {
        "token_embd.weight": embedding,
        "output.weight": matrix(N_VOCAB, N_EMBD),
        "output_norm.weight": ones,
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_q.weight": matrix(N_EMBD, N_EMBD),
        "blk.0.attn_k.weight": matrix(N_EMBD // 2, N_EMBD),
        "blk.0.attn_v.weight": matrix(N_EMBD // 2, N_EMBD),
        "blk.0.attn_output.weight": np.zeros((N_EMBD, N_EMBD), np.float32),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate_inp.weight": router,
        "blk.0.ffn_gate_exps.weight": matrix(N_EXPERTS, N_FF, N_EMBD),
        "blk.0.ffn_up_exps.weight": matrix(N_EXPERTS, N_FF, N_EMBD),
        "blk.0.ffn_down_exps.weight": matrix(N_EXPERTS, N_EMBD, N_FF),
    }


def write_moe(path: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    assert _vocabulary(writer, True) == N_VOCAB
    writer.add_context_length(N_CONTEXT)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_expert_count(N_EXPERTS)
    writer.add_expert_used_count(N_USED)
    for name, values in weights().items():
        writer.add_tensor(name, values)
    return _finish(writer, path)


def expected(tokens: NDArray[np.int32]) -> dict[str, tuple[NDArray[np.float64], list[int]]]:
    """Sums of squares, float64 [experts, columns], and counts, of what each weight multiplies for `tokens`."""
    w = {name: values.astype(np.float64) for name, values in weights().items()}
    x = w["token_embd.weight"][tokens]
    h = _normed(x)  # the input of attention, and of the experts too: attention adds nothing
    scores = h @ w["blk.0.ffn_gate_inp.weight"].T
    chosen = np.argsort(-scores, axis=1)[:, :N_USED]
    shares = np.exp(np.take_along_axis(scores, chosen, axis=1))
    shares /= shares.sum(axis=1, keepdims=True)
    into = np.zeros((N_EXPERTS, N_EMBD))
    inner = np.zeros((N_EXPERTS, N_FF))
    counts = np.zeros(N_EXPERTS, np.int64)
    out = x.copy()
    for token, experts in enumerate(chosen):
        for expert, share in zip(experts, shares[token], strict=True):
            gate = w["blk.0.ffn_gate_exps.weight"][expert] @ h[token]
            hidden = gate / (1 + np.exp(-gate)) * (w["blk.0.ffn_up_exps.weight"][expert] @ h[token])
            into[expert] += h[token] ** 2
            inner[expert] += hidden**2
            counts[expert] += 1
            out[token] += share * (w["blk.0.ffn_down_exps.weight"][expert] @ hidden)
    plain = ((h**2).sum(axis=0)[None], [len(tokens)])
    return {
        **dict.fromkeys([f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "ffn_gate_inp")], plain),
        "blk.0.ffn_gate_exps.weight": (into, counts.tolist()),
        "blk.0.ffn_up_exps.weight": (into, counts.tolist()),
        "blk.0.ffn_down_exps.weight": (inner, counts.tolist()),
        "output.weight": ((_normed(out) ** 2).sum(axis=0)[None], [len(tokens)]),
    }


def _normed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPS)
