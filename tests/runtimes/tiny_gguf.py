"""Tiny GGUF models with random float32 weights, written by the gguf package: for what SmolLM2 cannot show.

In float32 the logits hardly depend on how tokens are batched, so the runtime's own bookkeeping is what is tested.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

N_EMBD = 32
N_LAYERS = 2
N_CONTEXT = 128
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def write_llama(
    path: Path, *, text: bool = True, adds_bos: bool = True, templates: dict[str, str] | None = None
) -> Path:
    """A Llama; with `text` it has a SentencePiece vocabulary of bytes (3 + byte), without it 300 nameless tokens.

    `templates` are its chat templates by name, "" for the unnamed one.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    n_vocab = _vocabulary(writer, adds_bos) if text else _no_vocabulary(writer)
    for name, source in (templates or {}).items():
        writer.add_string("tokenizer.chat_template" + (f".{name}" if name else ""), source)
    writer.add_context_length(N_CONTEXT)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(2 * N_EMBD)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    weights = _Weights(writer)
    weights.matrix("token_embd.weight", n_vocab, N_EMBD)
    weights.matrix("output.weight", n_vocab, N_EMBD)
    weights.ones("output_norm.weight", N_EMBD)
    for layer in range(N_LAYERS):
        name = f"blk.{layer}."
        weights.ones(name + "attn_norm.weight", N_EMBD)
        weights.ones(name + "ffn_norm.weight", N_EMBD)
        weights.matrix(name + "attn_q.weight", N_EMBD, N_EMBD)
        weights.matrix(name + "attn_k.weight", N_EMBD // 2, N_EMBD)
        weights.matrix(name + "attn_v.weight", N_EMBD // 2, N_EMBD)
        weights.matrix(name + "attn_output.weight", N_EMBD, N_EMBD)
        weights.matrix(name + "ffn_gate.weight", 2 * N_EMBD, N_EMBD)
        weights.matrix(name + "ffn_up.weight", 2 * N_EMBD, N_EMBD)
        weights.matrix(name + "ffn_down.weight", N_EMBD, 2 * N_EMBD)
    return _finish(writer, path)


def write_mamba(path: Path) -> Path:
    """A Mamba: its state cannot be cut back to an earlier token."""
    import gguf

    inner, state, rank, conv = 2 * N_EMBD, 8, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    n_vocab = _vocabulary(writer, adds_bos=True)
    writer.add_context_length(N_CONTEXT)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(N_LAYERS)
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    weights = _Weights(writer)
    weights.matrix("token_embd.weight", n_vocab, N_EMBD)
    weights.ones("output_norm.weight", N_EMBD)
    for layer in range(N_LAYERS):
        name = f"blk.{layer}."
        weights.ones(name + "attn_norm.weight", N_EMBD)
        weights.matrix(name + "ssm_in.weight", 2 * inner, N_EMBD)
        weights.matrix(name + "ssm_conv1d.weight", inner, conv)
        weights.ones(name + "ssm_conv1d.bias", inner)
        weights.matrix(name + "ssm_x.weight", rank + 2 * state, inner)
        weights.matrix(name + "ssm_dt.weight", inner, rank)
        weights.ones(name + "ssm_dt.bias", inner)
        weights.matrix(name + "ssm_a", inner, state, negative=True)
        weights.ones(name + "ssm_d", inner)
        weights.matrix(name + "ssm_out.weight", N_EMBD, inner)
    return _finish(writer, path)


def write_unknown(path: Path) -> Path:
    """A valid file of an architecture that nobody knows."""
    import gguf

    writer = gguf.GGUFWriter(path, "nosucharch")
    _Weights(writer).ones("token_embd.weight", 32)
    return _finish(writer, path)


def write_incomplete(path: Path) -> Path:
    """A valid file that calls itself a Llama and lacks its hyper-parameters and tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _Weights(writer).ones("token_embd.weight", 32)
    return _finish(writer, path)


class _Weights:
    def __init__(self, writer) -> None:  # type: ignore[no-untyped-def]
        self._writer = writer
        self._rng = np.random.default_rng(7)

    def matrix(self, name: str, rows: int, columns: int, *, negative: bool = False) -> None:
        values = self._rng.standard_normal((rows, columns), np.float32) * np.float32(1.5 / np.sqrt(columns))
        self._writer.add_tensor(name, -np.abs(values) if negative else values)

    def ones(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, np.ones(size, np.float32))


def _vocabulary(writer, adds_bos: bool) -> int:  # type: ignore[no-untyped-def]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    normal, unknown, control, byte = 1, 2, 3, 6
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([unknown, control, control, *[byte] * 256, normal])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(adds_bos)
    return len(tokens)


def _no_vocabulary(writer) -> int:  # type: ignore[no-untyped-def]
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(300)
    return 300


def _finish(writer, path: Path) -> Path:  # type: ignore[no-untyped-def]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
