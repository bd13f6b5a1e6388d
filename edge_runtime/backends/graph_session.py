"""An ONNX Runtime session of one graph, as the backend runs it."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import GraphRecord


class GraphSession:
    """A session that takes host arrays and gives new ones; several threads may run it at once."""

    def __init__(self, session: Any, graph: GraphRecord) -> None:
        self._session = session
        self._names = [spec.name for spec in graph.outputs]

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the record's order, owned by the caller."""
        outputs: list[NDArray[Any]] = self._session.run(self._names, feeds)
        return outputs

    def device_seconds(self, feeds: dict[str, NDArray[Any]]) -> float | None:
        """None: its time is the host's."""
        return None

    def close(self) -> None:
        """The session is freed with the last reference to it."""
