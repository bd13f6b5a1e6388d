"""The fleet's generator against a real server, its figures, and the simulation against what queueing theory says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.wire.codec import decode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits
from qwen3vl_edge.server.engines.checkpoint_config import model_shape
from qwen3vl_edge.server.generate_json import decode_json
from qwen3vl_edge.tools.dev.load.figures import Run, Sample, decode_tokens_per_second, gaps, percentiles, summarise
from qwen3vl_edge.tools.dev.load.mix import Mix, make_requests
from qwen3vl_edge.tools.dev.load.over_http import Network, binary_body, closed_loop, json_body, open_loop
from qwen3vl_edge.tools.dev.load.simulate import Costs, Traffic, simulate

TOKENS = 4


@pytest.fixture(scope="module")
def requests(reference: Path) -> list[GenerateRequest]:
    return make_requests(Mix(6, TOKENS), model_shape(open_checkpoint(str(reference))), range(256))


def test_every_device_gets_its_answers(server_url: str, requests: list[GenerateRequest]) -> None:
    run = closed_loop(server_url, [binary_body(request) for request in requests], "binary", 3, Network(1000, 0.001))
    found = summarise(run)
    assert (found["requests"], found["answered"], found["refused"]) == (6, 6, {})
    assert all(0 < len(sample.tokens) <= TOKENS for sample in run.samples)
    assert all(list(sample.tokens) == sorted(sample.tokens) and sample.tokens[0] > sample.due for sample in run.samples)
    assert found["sent_bytes"] == sum(len(binary_body(request)) for request in requests)


def test_open_loop_and_refusals_are_counted(server_url: str, requests: list[GenerateRequest]) -> None:
    wrong = [binary_body(replace(request, model_hash="0" * 64)) for request in requests[:2]]
    bodies = [*wrong, *(json_body(request) for request in requests[2:4])]
    run = open_loop(server_url, bodies, "json", 50, 1)
    assert summarise(run)["refused"] == {"400 bad_wire_format": 2}
    assert summarise(run)["answered"] == 2


def test_json_asks_the_same(requests: list[GenerateRequest], reference: Path) -> None:
    shape = model_shape(open_checkpoint(str(reference)))
    for request in requests:
        binary = decode_request(bytearray(binary_body(request)))
        decoded = decode_json(json_body(request), shape, Limits())
        assert decoded.input_ids.tolist() == binary.input_ids.tolist()
        for one, other in zip(decoded.media, binary.media, strict=True):
            assert (one.embeds == other.embeds).all()
            assert all((a == b).all() for a, b in zip(one.deepstack, other.deepstack, strict=True))


def test_figures() -> None:
    run = Run((Sample(1.0, (2.0, 2.5, 3.5)), Sample(0.0, (), "429 queue_full"), Sample(2.0, (2.5,))), 4.0)
    found = summarise(run)
    assert found["tokens_per_second"] == 1.0
    assert found["refused"] == {"429 queue_full": 1}
    assert found["first_token_s"]["p50"] == 0.75
    assert found["between_tokens_s"] == percentiles([0.5, 1.0])
    assert percentiles([]) == {}


def test_decode_is_counted_while_all_answers_are_under_way() -> None:
    early, late = Sample(0.0, (1.0, 2.0, 3.0, 4.0)), Sample(0.0, (2.0, 3.0, 5.0))
    assert decode_tokens_per_second(Run((early, late), 5.0)) == 3 / 2  # from 2 to 4 s: two tokens and one
    assert decode_tokens_per_second(Run((early, Sample(0.0, (4.0, 5.0))), 5.0)) is None
    assert gaps(Run((early, late), 5.0)) == [1.0, 1.0, 1.0, 1.0, 2.0]


def test_one_at_a_time_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/G/1, service uniform from 0.5 to 1.5 s: mean wait = rate * E[S^2] / (2 * (1 - rate * E[S]))."""
    rate = 0.6
    costs = Costs(prompt_token_s=0.001, step_s=0, step_row_s=0, max_batch=1)
    found = simulate(costs, Traffic(rate, prompt_tokens=1000, new_tokens=1, max_queue=10**9), 200_000, seed=3)
    mean = sum(found.first_token_s) / len(found.first_token_s) - 1.0
    second_moment = 1.0 + 1.0 / 12
    assert mean == pytest.approx(rate * second_moment / (2 * (1 - rate)), rel=0.05)
    assert found.busy == pytest.approx(rate, rel=0.02)


def test_a_batch_brings_more_than_one_at_a_time_and_a_full_queue_refuses() -> None:
    traffic = Traffic(2.0, prompt_tokens=100, new_tokens=40)
    alone = simulate(Costs(0.0005, 0.02, 0.001, 1), traffic, 600)
    together = simulate(Costs(0.0005, 0.02, 0.001, 16), traffic, 600)
    assert alone.refused > 0.2
    assert together.refused == 0
    assert 1 < together.mean_batch <= 16


def test_the_plan_is_printed() -> None:
    command = [sys.executable, "-m", "qwen3vl_edge.tools.dev.load.plan", "--devices", "2000", "--model", "2B"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert found["bytes_per_request"] == 196 * 2048 * 2 * 4
    assert found["server_ingress_gbit"] == pytest.approx(2000 / 60 * 196 * 2048 * 8 * 8 / 1e9, abs=0.01)
    assert found["replicas"] >= 1
    assert found["first_token_s"]["p95"] <= 1.0
