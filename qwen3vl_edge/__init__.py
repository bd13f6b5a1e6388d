"""Qwen3-VL on two machines: the vision encoder on the device, the language model on a server.

The names in `__all__` are the public API; every other module and name is private and may change in any release. Each is
imported from its module when it is first used, so that importing this package loads no other module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "BackendOptions",
    "BucketError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Client",
    "ContractError",
    "Edge",
    "EdgeOptions",
    "EngineError",
    "InputError",
    "InternalError",
    "KeyReusedError",
    "LimitError",
    "ModelMismatchError",
    "ParityError",
    "QueueFullError",
    "Sampling",
    "ServerAccess",
    "ServerUnavailableError",
    "WireError",
    "__version__",
    "ask",
    "ask_async",
    "build_messages",
    "export_bundle",
    "open_bundle",
    "open_edge",
]

if TYPE_CHECKING:
    from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
    from qwen3vl_edge.contract.errors import (
        BucketError,
        BundleError,
        CheckpointError,
        ContractError,
        EngineError,
        InputError,
        InternalError,
        KeyReusedError,
        LimitError,
        ModelMismatchError,
        ParityError,
        QueueFullError,
        ServerUnavailableError,
        WireError,
    )
    from qwen3vl_edge.contract.wire.request import Sampling
    from qwen3vl_edge.edge_runtime.ask import Answer, ask, ask_async, build_messages
    from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
    from qwen3vl_edge.edge_runtime.client.server_credentials import ServerAccess
    from qwen3vl_edge.edge_runtime.client.sync_client import Client
    from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.export.bundle import export_bundle
else:  # hidden from type checkers: with this __getattr__ every misspelt name would have type Any
    _MODULES = {
        "Answer": "edge_runtime.ask",
        "AsyncClient": "edge_runtime.client.async_client",
        "Client": "edge_runtime.client.sync_client",
        "BackendOptions": "edge_runtime.encoder.protocol",
        "Bundle": "contract.bundle.open",
        "Edge": "edge_runtime.edge",
        "EdgeOptions": "edge_runtime.edge",
        "Sampling": "contract.wire.request",
        "ServerAccess": "edge_runtime.client.server_credentials",
        "ask": "edge_runtime.ask",
        "ask_async": "edge_runtime.ask",
        "build_messages": "edge_runtime.ask",
        "export_bundle": "export.bundle",
        "open_bundle": "contract.bundle.open",
        "open_edge": "edge_runtime.edge",
    }

    def __getattr__(name: str) -> object:
        """Import a public name from its module (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'contract.errors')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
