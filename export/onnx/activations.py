"""The activations of transformers' table (`activations.py`, 5.24) as ONNX nodes, by the name in `hidden_act`.

Its entries with parameters of their own (`prelu`, `xielu`) and those that no vision tower has are not here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwen3vl_edge.export.onnx.emitter import GraphEmitter, Value


def activation(emit: GraphEmitter, x: Value, name: str, kind: str) -> Value:
    """Emit an activation of a float32 tensor; its output is called `name`.

    Args:
        kind: a key of `ACTIVATIONS`.
    """
    return ACTIVATIONS[kind](emit, x, name)


def _op(op: str, **attributes: object) -> Callable[[GraphEmitter, Value, str], Value]:
    """An activation that is one node."""
    return lambda emit, x, name: emit.node(op, [x], name, **attributes)


def _sigmoid_gate(factor: float) -> Callable[[GraphEmitter, Value, str], Value]:
    """x · sigmoid(factor · x)."""

    def emitted(emit: GraphEmitter, x: Value, name: str) -> Value:
        inner = x
        if factor != 1:
            inner = emit.node("Mul", [x, emit.constant("act.factor", np.array(factor, np.float32))], f"{name}.scaled")
        return emit.node("Mul", [x, emit.node("Sigmoid", [inner], f"{name}.gate")], name)

    return emitted


def _clipped(op: str, low: float, high: float) -> Callable[[GraphEmitter, Value, str], Value]:
    """An activation between two bounds."""

    def emitted(emit: GraphEmitter, x: Value, name: str) -> Value:
        bounds = [
            emit.constant(f"act.{side}", np.array(value, np.float32)) for side, value in (("low", low), ("high", high))
        ]
        return emit.node("Clip", [emit.node(op, [x], f"{name}.inner"), *bounds], name)

    return emitted


def _squared_relu(emit: GraphEmitter, x: Value, name: str) -> Value:
    positive = emit.node("Relu", [x], f"{name}.positive")
    return emit.node("Mul", [positive, positive], name)


_EXACT, _TANH = _op("Gelu", approximate="none"), _op("Gelu", approximate="tanh")
# Entries that differ in their rounding alone have one form: transformers writes the tanh form in five ways.
ACTIVATIONS: dict[str, Callable[[GraphEmitter, Value, str], Value]] = {
    "gelu_pytorch_tanh": _TANH,
    "gelu": _EXACT,
    "gelu_python": _EXACT,
    "gelu_10": _clipped("Gelu", -10, 10),
    "gelu_python_tanh": _TANH,
    "gelu_new": _TANH,
    "gelu_fast": _TANH,
    "gelu_accurate": _TANH,
    "quick_gelu": _sigmoid_gate(1.702),
    "silu": _sigmoid_gate(1),
    "swish": _sigmoid_gate(1),
    "relu": _op("Relu"),
    "relu2": _squared_relu,
    "relu6": _clipped("Relu", 0, 6),
    "hardswish": _op("HardSwish"),
    "leaky_relu": _op("LeakyRelu", alpha=0.01),
    "linear": _op("Identity"),
    "mish": _op("Mish"),
    "sigmoid": _op("Sigmoid"),
    "tanh": _op("Tanh"),
}
