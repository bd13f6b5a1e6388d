"""A call between any two layers of the model: answers under way go on while a long prompt is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel


@contextmanager
def between_layers(loaded: LoadedModel, call: Callable[[], None]) -> Iterator[None]:
    """Within the context, `call` runs before each decoder layer, in the thread of the model's call.

    `call` may run the model itself: there it is not called again. What it raises ends the model's call.
    """
    inside = False

    def before(module: Any, inputs: Any) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        try:
            call()
        finally:
            inside = False

    handles = [layer.register_forward_pre_hook(before) for layer in loaded.decoder_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
