"""A decoder as a graph of ONNX Runtime's operators, from a family's structure, hyper-parameters and tensors.

The graph is what ONNX Runtime GenAI expects of a language model: input_ids and attention_mask, the keys and values of
earlier tokens in, those of all tokens and the logits out. GroupQueryAttention rotates, keeps the cache and attends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from llmkit.convert.archs import Experts, HParams
from llmkit.convert.archs.structure import Structure
from llmkit.convert.network.rotary import ROTARY, SLIDING_ROTARY
from llmkit.convert.onnx.graph import MICROSOFT, Graph, Value, dtype_of
from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.types import TensorType

PAST: Final = "past_key_values.{}.{}"
PRESENT: Final = "present.{}.{}"
_KINDS: Final = ("key", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """How the graph computes: `type` is that of activations and cache, F32 or F16.

    `accuracy_level` is MatMulNBits': 4 rounds activations to 8 bits, 1 computes in float32. `short_positions` is how
    many tokens LongRoPE's rotation of short texts is for. `multiplies_transposed`: whether FusedMatMul may be used.
    """

    type: TensorType
    accuracy_level: int
    short_positions: int | None = None
    multiplies_transposed: bool = True


class Decoder:
    """Builds the graph of one model, whose weights are `tensors` by name."""

    def __init__(
        self,
        graph: Graph,
        hparams: HParams,
        structure: Structure,
        tensors: Mapping[str, PlannedTensor],
        how: Computation,
    ) -> None:
        self._graph = graph
        self._h = hparams
        self._structure = structure
        self._tensors = tensors
        self._how = how
        self._positions: Value | None = None

    def build(self) -> None:
        """Add the whole decoder to the graph."""
        h, structure = self._h, self._structure
        i64 = ir.DataType.INT64
        ids = self._graph.input("input_ids", i64, ("batch_size", "sequence_length"))
        mask = self._graph.input("attention_mask", i64, ("batch_size", "total_sequence_length"))
        past, total = self._lengths(mask)
        self._positions = self._places_in_tables(ids, mask, total)
        stream = self._embedding(ids)
        # Adding to the stream and the norm of the sum are one operator: what is to be added waits for the next norm.
        added: Value | None = None
        for block in range(h.n_layers):
            name = f"blk.{block}."
            stream, x = self._enter(stream, added, name, structure.norm_before_attention, "attn")
            added = self._leave(self._attention(x, block, past, total), name, structure.norm_after_attention, "attn")
            stream, x = self._enter(stream, added, name, structure.norm_before_mlp, "ffn")
            added = self._leave(self._mlp(x, name), name, structure.norm_after_mlp, "ffn")
        _, x = self._enter(stream, added, "", "output_norm", "output")
        self._logits(x)

    def _lengths(self, mask: Value) -> tuple[Value, Value]:
        """The number of tokens before the last one, of each text, and the length of the longest text."""
        g, one = self._graph, self._graph.constant([1], np.int64)
        lengths = g.op("ReduceSum", mask, one, name="lengths", keepdims=0)
        before = g.op("Sub", lengths, one, name="lengths.before")
        shape = g.op("Shape", mask, name="mask.shape")
        total = g.op("Gather", shape, g.constant(1, np.int64), name="mask.length", axis=0)
        i32 = int(ir.DataType.INT32)
        return g.op("Cast", before, name="past_lengths", to=i32), g.op("Cast", total, name="total_length", to=i32)

    def _embedding(self, ids: Value) -> Value:
        g, tensor = self._graph, self._tensors["token_embd.weight"]
        if isinstance(tensor.type, BlockwiseFormat):
            codes, scales, zeros = g.blocks(tensor, flat=True)
            found = g.op(
                "GatherBlockQuantized",
                codes,
                ids,
                scales,
                zeros,
                domain=MICROSOFT,
                name="embedding",
                bits=tensor.type.bits,
                block_size=tensor.type.block_size,
                gather_axis=0,
                quantize_axis=1,
            )
        else:
            found = g.op("Gather", g.weight(tensor), ids, name="embedding")
        return self._scaled(found, self._structure.embedding_scale(self._h), "embedding.scaled")

    def _enter(
        self, stream: Value, added: Value | None, prefix: str, norm: str | None, name: str
    ) -> tuple[Value, Value]:
        """The stream with `added`, and what the part that follows is computed from: the stream's norm if it has one."""
        name = f"{prefix}{name}"
        if norm is None:
            total = stream if added is None else self._graph.op("Add", stream, added, name=f"{name}.sum")
            return total, total
        if added is None:
            return stream, self._norm(stream, f"{prefix}{norm}", name)
        normed, _, _, total = self._graph.ops(
            "SkipSimplifiedLayerNormalization",
            stream,
            added,
            self._weight(f"{prefix}{norm}.weight"),
            domain=MICROSOFT,
            name=f"{name}.norm",
            n_outputs=4,
            unused=2,  # mean and deviation, for training
            epsilon=self._h.rms_eps,
        )
        return total, normed

    def _leave(self, x: Value, prefix: str, norm: str | None, name: str) -> Value:
        """What is added to the stream, of what a part has computed."""
        name = f"{prefix}{name}"
        normed = x if norm is None else self._norm(x, f"{prefix}{norm}", f"{name}.after")
        return self._scaled(normed, self._h.residual_scale, f"{name}.scaled")

    def _norm(self, x: Value, weight: str, name: str) -> Value:
        return self._graph.op(
            "RMSNormalization" if self._graph.standard else "SimplifiedLayerNormalization",
            x,
            self._weight(f"{weight}.weight"),
            name=f"{name}.norm",
            axis=-1,
            epsilon=self._h.rms_eps,
        )

    def _attention(self, x: Value, block: int, past: Value, total: Value) -> Value:
        h, name = self._h, f"blk.{block}.attn"
        window = self._structure.window(h, block)
        rotates = self._structure.rotates(h, block)
        table = SLIDING_ROTARY if window is not None and h.sliding_rope is not None else ROTARY
        inside = rotates and self._positions is None
        attended, *present = self._graph.ops(
            "GroupQueryAttention",
            *self._queries_keys_values(x, name, rotates and not inside),
            *(self._past(block, kind) for kind in _KINDS),
            past,
            total,
            *(self._weight(f"{table}.{function}") if inside else None for function in ("cos", "sin")),
            *(None, None),  # positions, and what is added to the products
            self._optional(f"{name}_sinks.weight"),
            domain=MICROSOFT,
            name=name,
            n_outputs=3,
            num_heads=h.n_heads,
            kv_num_heads=h.n_kv_heads,
            scale=self._structure.attention_scale(h),
            do_rotary=int(inside),
            local_window_size=-1 if window is None else window,
            softcap=h.attention_softcap or 0.0,
        )
        for kind, value in zip(_KINDS, present, strict=True):
            shape = ("batch_size", h.n_kv_heads, "total_sequence_length", h.head_dim)
            self._graph.output(value, PRESENT.format(block, kind), dtype_of(self._how.type), shape)
        return self._linear(attended, f"{name}_output")

    def _queries_keys_values(self, x: Value, name: str, turned: bool) -> tuple[Value, Value | None, Value | None]:
        """All in one where attention takes them as they are, else apart; `turned`: rotated here."""
        h, g = self._h, self._graph
        normed = f"{name}_q_norm.weight" in self._tensors
        if f"{name}_qkv.weight" not in self._tensors:
            q, k, v = (self._linear(x, f"{name}_{role}") for role in "qkv")
        else:
            qkv = self._linear(x, f"{name}_qkv")
            if not normed and not turned:
                return qkv, None, None
            sizes = g.constant([n * h.head_dim for n in (h.n_heads, h.n_kv_heads, h.n_kv_heads)], np.int64)
            q, k, v = g.ops("Split", qkv, sizes, name=f"{name}.split", n_outputs=3, axis=-1)
        if normed:
            q, k = self._norm_heads(q, f"{name}_q", h.n_heads), self._norm_heads(k, f"{name}_k", h.n_kv_heads)
        if turned:
            q, k = self._rotate(q, f"{name}_q", h.n_heads), self._rotate(k, f"{name}_k", h.n_kv_heads)
        return q, k, v

    def _norm_heads(self, x: Value, name: str, n_heads: int) -> Value:
        """The norm of all heads together or of each, by the width of its weights.

        GroupQueryAttention could normalise each head itself, but not on the CPU.
        """
        g, width = self._graph, self._h.head_dim
        if self._tensors[f"{name}_norm.weight"].shape != (width,):
            return self._norm(x, f"{name}_norm", name)
        heads = g.op("Reshape", x, g.constant([0, -1, width], np.int64), name=f"{name}.heads")
        normed = self._norm(heads, f"{name}_norm", name)
        return g.op("Reshape", normed, g.constant([0, -1, n_heads * width], np.int64), name=f"{name}.joined")

    def _rotate(self, x: Value, name: str, n_heads: int) -> Value:
        h = self._h
        n_rotated = self._tensors[f"{ROTARY}.cos"].shape[1] * 2
        part = {} if n_rotated == h.head_dim else {"num_heads": n_heads, "rotary_embedding_dim": n_rotated}
        return self._graph.op(
            "RotaryEmbedding",
            x,
            self._positions,
            *(self._weight(f"{ROTARY}.{function}") for function in ("cos", "sin")),
            domain=MICROSOFT,
            name=f"{name}.rotated",
            **part,
        )

    def _places_in_tables(self, ids: Value, mask: Value, total: Value) -> Value | None:
        """Which row of the tables rotates each token, where that is not its position: LongRoPE has two sets.

        Texts longer than the first set's positions are rotated by the second one, from their first token on.
        """
        g, original = self._graph, self._how.short_positions
        if original is None:
            return None
        i64 = int(ir.DataType.INT64)
        counted = g.op("CumSum", mask, g.constant(1, np.int64), name="positions.counted")
        every = g.op("Sub", counted, g.constant(1, np.int64), name="positions.all")
        length = g.op(
            "Slice",
            g.op("Shape", ids, name="ids.shape"),
            *(g.constant([i], np.int64) for i in (1, 2)),
            name="ids.length",
        )
        begin = g.op("Neg", length, name="positions.begin")
        end = g.constant([np.iinfo(np.int64).max], np.int64)
        new = g.op("Slice", every, begin, end, g.constant([1], np.int64), name="positions.new")
        positions = g.op("Max", new, g.constant(0, np.int64), name="positions")  # what is filled up has none
        is_long = g.op("Greater", total, g.constant(original, np.int32), name="is_long")
        further = g.op(
            "Mul",
            g.op("Cast", is_long, name="is_long.number", to=i64),
            g.constant(original, np.int64),
            name="rows.further",
        )
        return g.op("Add", positions, further, name="rows")

    def _past(self, block: int, kind: str) -> Value:
        h = self._h
        shape = ("batch_size", h.n_kv_heads, "past_sequence_length", h.head_dim)
        return self._graph.input(PAST.format(block, kind), dtype_of(self._how.type), shape)

    def _mlp(self, x: Value, name: str) -> Value:
        if self._h.experts is not None:
            return self._experts(x, f"{name}ffn_", self._h.experts)
        g, up = self._graph, self._linear(x, f"{name}ffn_up")
        if f"{name}ffn_gate.weight" in self._tensors:
            gate = self._linear(x, f"{name}ffn_gate")
        else:
            gate, up = g.ops("Split", up, name=f"{name}ffn.split", n_outputs=2, axis=-1, num_outputs=2)
        activated = self._activated(gate, f"{name}ffn")
        return self._linear(g.op("Mul", activated, up, name=f"{name}ffn.product"), f"{name}ffn_down")

    def _experts(self, x: Value, prefix: str, experts: Experts) -> Value:
        g, structure = self._graph, self._structure
        first, last = (self._tensors[f"{prefix}{role}_exps.weight"] for role in ("gate_up", "down"))
        biases = [self._optional(f"{prefix}{role}_exps.bias") for role in ("gate_up", "down")]
        router = self._linear(x, f"{prefix}gate_inp")
        chances = g.op("Reshape", router, g.constant([-1, experts.n_experts], np.int64), name=f"{prefix}chances")
        is_oss = structure.activation == "swiglu_oss"
        attributes: dict[str, Any] = {
            "k": experts.n_used,
            "normalize_routing_weights": int(structure.normalizes_experts),
            "activation_type": "swiglu",  # gate * sigmoid(alpha * gate) * (up + beta)
            "activation_alpha": structure.gate_alpha,
            "activation_beta": 1.0 if is_oss else 0.0,
            "swiglu_fusion": 1,  # gates and what they multiply in turns
            **({} if structure.gate_limit is None else {"swiglu_limit": structure.gate_limit}),
        }
        name = f"{prefix}experts"
        if not isinstance(first.type, BlockwiseFormat) or not isinstance(last.type, BlockwiseFormat):
            weights = (g.weight(first), biases[0], g.weight(last), biases[1])
            return g.op("MoE", x, chances, *weights, domain=MICROSOFT, name=name, **attributes)
        codes, scales, zeros = zip(*(g.blocks(tensor, flat=True) for tensor in (first, last)), strict=True)
        return g.op(
            "QMoE",
            x,
            chances,
            *(codes[0], scales[0], biases[0]),
            *(codes[1], scales[1], biases[1]),
            *(None,) * 3,
            *zeros,
            domain=MICROSOFT,
            name=name,
            expert_weight_bits=first.type.bits,
            block_size=first.type.block_size,
            accuracy_level=self._how.accuracy_level,
            **attributes,
        )

    def _activated(self, x: Value, name: str) -> Value:
        g = self._graph
        if self._structure.activation == "gelu_tanh":
            if not g.standard:
                return g.op("FastGelu", x, domain=MICROSOFT, name=f"{name}.gelu")
            return g.op("Gelu", x, name=f"{name}.gelu", approximate="tanh")
        return g.op("Mul", x, g.op("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu")

    def _logits(self, x: Value) -> None:
        h, g = self._h, self._graph
        logits = self._linear(x, "output" if "output.weight" in self._tensors else "token_embd", name="output")
        logits = self._scaled(logits, self._structure.logit_scale(h), "output.scaled")
        if h.final_softcap:
            small = self._scaled(logits, 1 / h.final_softcap, "output.small")
            logits = self._scaled(g.op("Tanh", small, name="output.tanh"), h.final_softcap, "output.capped")
        shape = ("batch_size", "sequence_length", h.n_vocab)
        g.output(logits, "logits", dtype_of(self._how.type), shape)

    def _linear(self, x: Value, name_of_weight: str, *, name: str | None = None) -> Value:
        """x [..., columns] times the transposed matrix [rows, columns], and its bias if it has one."""
        g, tensor = self._graph, self._tensors[f"{name_of_weight}.weight"]
        name = name or name_of_weight
        bias = self._optional(f"{name_of_weight}.bias")
        if isinstance(tensor.type, BlockwiseFormat):
            rows, columns = tensor.matrix
            return g.op(
                "MatMulNBits",
                x,
                *g.blocks(tensor, flat=False),
                None,
                bias,
                domain=MICROSOFT,
                name=name,
                K=columns,
                N=rows,
                bits=tensor.type.bits,
                block_size=tensor.type.block_size,
                accuracy_level=self._how.accuracy_level,
            )
        # The standard's MatMul wants the matrix transposed, and the embedding could not be shared with it then.
        matrix = g.weight(tensor)
        if self._how.multiplies_transposed:
            product = g.op("FusedMatMul", x, matrix, domain=MICROSOFT, name=f"{name}.product", transB=1)
        else:  # ONNX Runtime transposes once, when it loads the model
            transposed = g.op("Transpose", matrix, name=f"{name}.transposed", perm=[1, 0])
            product = g.op("MatMul", x, transposed, name=f"{name}.product")
        return product if bias is None else g.op("Add", product, bias, name=name)

    def _weight(self, name: str) -> Value:
        return self._graph.weight(self._tensors[name])

    def _optional(self, name: str) -> Value | None:
        return self._weight(name) if name in self._tensors else None

    def _scaled(self, x: Value, scale: float | None, name: str) -> Value:
        if scale is None or scale == 1:
            return x
        dtype = np.float16 if self._how.type is TensorType.F16 else np.float32
        return self._graph.op("Mul", x, self._graph.constant(scale, dtype), name=name)
