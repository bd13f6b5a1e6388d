"""The state of the daemon's cameras: `GET /v1/cameras`, and the same as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.metrics import PREFIX

ROUTES = ("/v1/cameras",)
# State, metric and its help; counters end in "_total".
_METRICS = (
    ("connected", "connected", "1 while the source delivers frames"),
    ("fps_seen", "source_fps", "Frames per second of the source"),
    ("frames_seen", "frames_received_total", "Frames received from the source"),
    ("frames_sampled", "frames_sampled_total", "Received frames that were sampled"),
    ("last_frame_age_s", "last_frame_age_seconds", "Seconds since the latest frame"),
    ("patches", "patches", "Temporal patches in the window"),
    ("patches_encoded", "patches_encoded_total", "Temporal patches encoded"),
    ("patches_unencoded", "patches_unencoded_total", "Temporal patches that left the window unencoded"),
    ("reconnects", "reconnects_total", "Attempts to connect after a loss"),
)


def camera_routes(daemon: Daemon) -> APIRouter:
    """`/v1/cameras`; the metrics are registered with it."""
    router = APIRouter()
    daemon.metrics.register(CameraCollector(lambda: [] if daemon.started is None else daemon.started.cameras.states()))

    @router.get("/v1/cameras")
    async def cameras() -> dict[str, Any]:
        """Each camera: connected, frames read and sampled, age of the latest, patches encoded."""
        return {"object": "list", "data": daemon.pipeline.cameras.states()}

    return router


class CameraCollector(Collector):
    """One metric per state, labelled by camera, read at each scrape."""

    def __init__(self, states: Callable[[], list[dict[str, Any]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        states = self._states()
        for key, name, what in _METRICS:
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"{PREFIX}_camera_{name}", what, labels=["camera"])
            for state in states:
                if state[key] is not None:
                    family.add_metric([state["id"]], float(state[key]))
            yield family
