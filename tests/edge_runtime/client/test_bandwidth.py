"""The estimated bandwidth, and the wire dtype chosen by it."""

from __future__ import annotations

import pytest

from qwen3vl_edge.edge_runtime.client.bandwidth import LEAST_BYTES, BandwidthEstimate

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("size", "header"),
    [(LEAST_BYTES - 1, "receive;dur=1"), (MEGABYTE, ""), (MEGABYTE, "receive;dur=0.000"), (MEGABYTE, "receive;dur=x")],
)
def test_what_shows_nothing_changes_nothing(size: int, header: str) -> None:
    bandwidth = BandwidthEstimate()
    bandwidth.observe(size, header)
    assert bandwidth.bytes_per_second is None
    assert bandwidth.choose(10**12, 2048, 1.0) == "fp16"


def test_the_newest_bodies_count_most() -> None:
    bandwidth = BandwidthEstimate()
    bandwidth.observe(MEGABYTE, "cache;dur=7, receive;dur=1000.0")
    assert bandwidth.bytes_per_second == MEGABYTE
    for _ in range(8):
        bandwidth.observe(MEGABYTE, "receive;dur=100")
    assert bandwidth.bytes_per_second == pytest.approx(10 * MEGABYTE, rel=0.01)


@pytest.mark.parametrize(("seconds", "name"), [(3.3, "fp16"), (3.1, "int8"), (1.5, "int4"), (0.1, "int4")])
def test_the_choice_that_moves_embeddings_least_and_is_there_in_time(seconds: float, name: str) -> None:
    bandwidth = BandwidthEstimate(bytes_per_second=MEGABYTE)
    assert bandwidth.choose(int(3.2 * MEGABYTE), 2048, seconds) == name
