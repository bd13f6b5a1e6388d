"""docs/reference/metrics.md lists every metric that server and daemon export, with type and labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from qwen3vl_edge.edge_runtime.daemon import metrics as daemon_metrics
from qwen3vl_edge.edge_runtime.daemon.concurrency import ConcurrencyLimit
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.daemon import open_ledger as open_daemon_ledger
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Counts
from qwen3vl_edge.edge_runtime.daemon.routes.cameras import CameraCollector
from qwen3vl_edge.server import metrics as server_metrics
from qwen3vl_edge.server.embeddings.disk import EmbeddingDisk
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.engines.protocol import EngineStats
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.state import open_ledger
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", re.MULTILINE)


def section(title: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def exposed(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def check(registry: CollectorRegistry, prefix: str, title: str, renamed: dict[str, str]) -> None:
    families = list(registry.collect())
    deprecated = {
        exposed(family).removeprefix(prefix): family for family in families if "Deprecated" in family.documentation
    }
    current = {exposed(family).removeprefix(prefix): family for family in families if family not in deprecated.values()}
    page = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(section(title))}
    assert {name: kind for name, (kind, _) in page.items()} == {name: family.type for name, family in current.items()}
    for name, family in current.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= page[name][1], name
    assert set(deprecated) == set(renamed)
    assert set(renamed.values()) <= set(current)
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", section("Renamed"), re.MULTILINE)
    assert set(renamed.items()) <= set(rows)
    for old, family in deprecated.items():
        assert family.documentation == f"Deprecated, use {prefix}{renamed[old]}"
        new = current[renamed[old]]
        values = [sample.value for sample in new.samples if not sample.name.endswith("_created")]
        assert [sample.value for sample in family.samples if not sample.name.endswith("_created")] == values


def test_server(tmp_path: Path) -> None:
    disk = EmbeddingDisk(tmp_path, 1000, 60, lambda: "")
    try:
        stats = EngineStats(waiting=1, running=2, kv_tokens=3, steps=4, step_rows=5, reused_tokens=6)
        metrics = server_metrics.Metrics(lambda: stats, EmbeddingStore(1000, 60, disk=disk), clients=True)
        metrics.watch_ledger(open_ledger(ServerOptions(model="unused")))
        metrics.time_per_output_token.observe(0.01)
        metrics.requests.labels("/healthz", "200").inc()
        assert metrics.client_tokens is not None
        metrics.client_tokens.labels("a", "prompt").inc()
        check(metrics.registry, "qwen3vl_edge_", "Server", server_metrics.RENAMED)
        assert metrics.registry.get_sample_value("qwen3vl_edge_running") == 2
        assert metrics.registry.get_sample_value("qwen3vl_edge_step_rows_total") == 5
        assert metrics.registry.get_sample_value("qwen3vl_edge_time_between_tokens_seconds_bucket", {"le": "0.01"}) == 1
    finally:
        disk.close()


def test_daemon() -> None:
    metrics = daemon_metrics.Metrics(lambda: None, ConcurrencyLimit(1))
    metrics.watch_spool(lambda: Counts({}, 7))
    metrics.watch_ledger(open_daemon_ledger(DaemonConfig(ROOT)))
    state = dict.fromkeys(("connected", "fps_seen", "frames_seen", "frames_sampled", "last_frame_age_s"), 1.0)
    state |= dict.fromkeys(("patches", "patches_encoded", "patches_unencoded", "reconnects"), 2.0)
    metrics.register(CameraCollector(lambda: [{**state, "id": "front"}]))
    metrics.seconds.labels("encode").observe(0.2)
    metrics.reloads.labels("failed").inc()
    check(metrics.registry, "qwen3vl_edge_device_", "Daemon", daemon_metrics.RENAMED)
    count = metrics.registry.get_sample_value("qwen3vl_edge_device_seconds_count", {"stage": "encode"})
    assert count == 1
    assert metrics.registry.get_sample_value("qwen3vl_edge_device_camera_reconnects", {"camera": "front"}) == 2


@pytest.mark.parametrize("title", ["Server", "Daemon"])
def test_names_have_units(title: str) -> None:
    for name, kind, _ in ROW.findall(section(title)):
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram" and name != "distortion":
            assert name.endswith("_seconds"), name
