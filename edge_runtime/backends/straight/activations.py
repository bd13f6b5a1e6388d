"""The activations of the MLP in PyTorch, by the name in `hidden_act`: those that a bundle's graphs have.

As in the graphs (export/onnx/activations.py) they are computed in float32, whatever the type of the products is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def _gelu_10(x: Tensor) -> Tensor:
    return torch.clip(F.gelu(x), -10, 10)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


_TANH: Activation = partial(F.gelu, approximate="tanh")
_IN_FLOAT32: dict[str, Activation] = {
    "gelu_10": _gelu_10,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "linear": _linear,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
# torch's GELU computes half types in float32 by itself; these are the released encoders' path.
_GELU: dict[str, Activation] = {
    "gelu_pytorch_tanh": _TANH,
    "gelu_python_tanh": _TANH,
    "gelu_new": _TANH,
    "gelu_fast": _TANH,
    "gelu_accurate": _TANH,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
}


def activation(kind: str) -> Activation:
    """The function of that name.

    Raises:
        KeyError: export refuses such an encoder.
    """
    if kind in _GELU:
        return _GELU[kind]
    inner = _IN_FLOAT32[kind]

    def in_float32(x: Tensor) -> Tensor:
        return inner(x.float()).to(x.dtype)

    return in_float32
