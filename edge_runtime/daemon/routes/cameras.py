"""The state of the daemon's cameras: `GET /v1/cameras`, and the same as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.metrics import PREFIX

ROUTES = ("/v1/cameras",)
_GAUGES = {
    "connected": "1 while the source delivers",
    "fps_seen": "Frames a second that the source gives",
    "frames_seen": "Frames that the source gave since start",
    "frames_sampled": "Frames taken of them",
    "last_frame_age_s": "Seconds since the latest frame",
    "patches": "Temporal patches in the window",
    "patches_encoded": "Temporal patches encoded since start",
    "patches_unencoded": "Temporal patches that left the window unencoded",
    "reconnects": "Attempts to connect after a loss",
}


def camera_routes(daemon: Daemon) -> APIRouter:
    """`/v1/cameras`; the metrics are registered with it."""
    router = APIRouter()
    daemon.metrics.registry.register(
        CameraCollector(lambda: [] if daemon.started is None else daemon.started.cameras.states())
    )

    @router.get("/v1/cameras")
    async def cameras() -> dict[str, Any]:
        """Each camera: connected, frames read and sampled, age of the latest, patches encoded."""
        return {"object": "list", "data": daemon.pipeline.cameras.states()}

    return router


class CameraCollector(Collector):
    """One gauge per state, labelled by camera, read at each scrape."""

    def __init__(self, states: Callable[[], list[dict[str, Any]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily]:
        states = self._states()
        for name, help_text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_camera_{name}", help_text, labels=["camera"])
            for state in states:
                if state[name] is not None:
                    gauge.add_metric([state["id"]], float(state[name]))
            yield gauge
