"""Devices that ask a server over HTTP, each on a network of its own."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.tools.dev.load.figures import Run, Sample

CONTENT_TYPES = {"binary": CONTENT_TYPE, "json": "application/json"}


@dataclass(frozen=True)
class Network:
    """A device's way to the server, emulated by waiting before a body is sent.

    Attributes:
        uplink_mbit: million bits per second; 0 for no limit.
        rtt_s: seconds to the server and back.
    """

    uplink_mbit: float = 0.0
    rtt_s: float = 0.0

    def seconds(self, size: int) -> float:
        """Until `size` bytes have arrived and the first of the answer can be back."""
        return self.rtt_s + (size * 8 / (self.uplink_mbit * 1e6) if self.uplink_mbit else 0.0)


def json_body(request: GenerateRequest) -> bytes:
    """The same request as JSON lists of numbers: the obvious first design, for comparison."""
    images = [item for item in request.media if item.kind == "image"]
    levels = range(len(images[0].deepstack)) if images else range(0)
    return json.dumps(
        {
            "model_hash": request.model_hash,
            "input_ids": request.input_ids.tolist(),
            "vision_embeddings": [item.embeds.astype(float).tolist() for item in images],
            "deepstack_embeddings": [
                [item.deepstack[level].astype(float).tolist() for item in images] for level in levels
            ],
            "image_grid_thw": [item.grid.as_list() for item in images],
            "max_new_tokens": request.sampling.max_new_tokens,
            "stream": True,
            "request_id": request.request_id,
        }
    ).encode()


def binary_body(request: GenerateRequest) -> bytes:
    """The wire format of this project."""
    return bytes(encode_request(request))


def closed_loop(url: str, bodies: Sequence[bytes], kind: str, devices: int, network: Network | None = None) -> Run:
    """`devices` at a time; each sends its next request when it has its answer."""
    return asyncio.run(_closed(url, bodies, kind, devices, network or Network()))


def open_loop(
    url: str, bodies: Sequence[bytes], kind: str, per_second: float, seed: int, network: Network | None = None
) -> Run:
    """Requests that come when they come (Poisson), however many are under way."""
    return asyncio.run(_open(url, bodies, kind, per_second, seed, network or Network()))


async def _closed(url: str, bodies: Sequence[bytes], kind: str, devices: int, network: Network) -> Run:
    waiting = iter(bodies)
    samples: list[Sample] = []
    async with _client() as http:
        began = time.perf_counter()

        async def device() -> None:
            for body in waiting:
                samples.append(await _ask(http, url, body, kind, began, time.perf_counter() - began, network))

        await asyncio.gather(*(device() for _ in range(devices)))
        return Run(tuple(samples), time.perf_counter() - began, sum(map(len, bodies)))


async def _open(url: str, bodies: Sequence[bytes], kind: str, per_second: float, seed: int, network: Network) -> Run:
    rng, due, tasks = random.Random(seed), 0.0, []
    async with _client() as http:
        began = time.perf_counter()
        for body in bodies:
            due += rng.expovariate(per_second)
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.append(asyncio.create_task(_ask(http, url, body, kind, began, due, network)))
        samples = await asyncio.gather(*tasks)
        return Run(tuple(samples), time.perf_counter() - began, sum(map(len, bodies)))


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))


async def _ask(
    http: httpx.AsyncClient, url: str, body: bytes, kind: str, began: float, due: float, network: Network
) -> Sample:
    await asyncio.sleep(network.seconds(len(body)))
    tokens: list[float] = []
    headers = {"Content-Type": CONTENT_TYPES[kind]}
    async with http.stream("POST", f"{url}/v1/generate", content=body, headers=headers) as answer:
        if answer.status_code != 200:
            error = json.loads(await answer.aread())["error"]
            return Sample(due, (), f"{answer.status_code} {error['code']}")
        async for event in EventSource(answer).aiter_sse():
            if event.data.startswith('{"token_id": '):
                tokens.append(time.perf_counter() - began)
            elif event.data.startswith('{"error"'):
                return Sample(due, (), str(event.json()["error"]["code"]))
    return Sample(due, tuple(tokens))
