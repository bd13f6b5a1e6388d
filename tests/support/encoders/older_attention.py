"""Attention as exports wrote it up to manifest schema 4: one Squeeze before each of queries, keys and values."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3vl_edge.export.onnx.emitter import Value
from qwen3vl_edge.export.onnx.encoder_graph import EncoderWriter


def write_older_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, exports write float32 attention as they did."""
    monkeypatch.setattr(EncoderWriter, "attention", _attention)


def _attention(self: EncoderWriter, hidden: Value, name: str, rotary: tuple[Value, Value]) -> Value:
    emit, heads, width = self.emit, self.spec.num_heads, self.spec.head_dim
    qkv = self.linear(hidden, f"{name}.qkv")
    qkv = emit.node("Reshape", [qkv, self.frame_shape("qkv", 3, heads, width)], f"{name}.qkv.split_heads")
    qkv = emit.node("Transpose", [qkv], f"{name}.qkv.transpose", perm=[2, 0, 3, 1, 4])
    parts = emit.constant("qkv.parts", np.array([2, 1], dtype=np.int64))
    qk, v = emit.nodes("Split", [qkv, parts], f"{name}.split_v", [f"{name}.qk", f"{name}.v3"], axis=0)
    qk = self.rotate(qk, name, rotary)
    q, k = emit.nodes("Split", [qk], f"{name}.split_qk", [f"{name}.q3", f"{name}.k3"], axis=0, num_outputs=2)
    first = emit.constant("axis.0", np.array([0], dtype=np.int64))
    q, k, v = (emit.node("Squeeze", [x, first], f"{name}.{part}") for x, part in ((q, "q"), (k, "k"), (v, "v")))
    k = emit.node("Transpose", [k], f"{name}.k.transpose", perm=[0, 1, 3, 2])
    weights = emit.node("Softmax", [emit.node("MatMul", [q, k], f"{name}.scores")], f"{name}.softmax", axis=-1)
    mixed = emit.node("MatMul", [weights, v], f"{name}.mix")
    mixed = emit.node("Transpose", [mixed], f"{name}.merge_heads", perm=[0, 2, 1, 3])
    mixed = emit.node("Reshape", [mixed, emit.shape("shape.hidden", -1, self.spec.hidden_size)], f"{name}.flat")
    return self.linear(mixed, f"{name}.proj")
