"""The server killed without warning under load: whoever asks again by the same key gets its answer, once."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.metrics import metric
from tests.support.server_checkpoint import make_case, make_checkpoint
from tests.support.waiting import until

CLIENTS, KILLS, TOKENS, PATIENCE_S = 4, 2, 120, 120.0
Bodies = list[WireBody]


def device(url: str, number: int, bodies: Bodies) -> Any:
    """What a device is told: every piece of text, and the whole answer at the end."""
    sent = bodies[number % len(bodies)]

    async def told() -> Any:
        async with AsyncClient(url) as client:
            found = [event async for event in client.stream(sent, PATIENCE_S, f"device-{number}")]
        return "".join(event.text for event in found), [event.final for event in found if event.final is not None]

    text, ends = asyncio.run(told())
    assert len(ends) == 1
    assert text == ends[0]["text"]
    return ends[0]["generated_ids"]


def chat(url: str, number: int, _: Bodies) -> Any:
    """What OpenAI's own client gets, which asks again by itself."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=60) as client:
        answer = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": f"{number}?"}],
            max_tokens=TOKENS,
            logprobs=True,
            extra_headers={HEADER: f"chat-{number}"},
        )
    assert answer.choices[0].logprobs is not None
    return [token.token for token in answer.choices[0].logprobs.content or ()]


def all_at_once(url: str, bodies: Bodies) -> list[Any]:
    with ThreadPoolExecutor(2 * CLIENTS) as pool:
        asked = [pool.submit(one, url, number, bodies) for number in range(CLIENTS) for one in (device, chat)]
        return [future.result(PATIENCE_S) for future in asked]


def busy(url: str) -> bool:
    """Whether several generate and have come some way."""
    return all(metric(url, f"qwen3vl_edge_{name}") >= 4 for name in ("running", "steps_total"))


def test_killed_under_load_everybody_is_answered_once(tmp_path: Path) -> None:
    model = Path(shutil.copytree(make_checkpoint(), tmp_path / "endless"))
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    requests = [make_case(name, max_new_tokens=TOKENS).request for name in ("one image", "image and clip")]
    model_hash = open_checkpoint(str(model)).model_hash
    bodies = [encode_request(replace(request, model_hash=model_hash, stream=True)) for request in requests]
    options: dict[str, Any] = {"threads": 1, "model": str(model), "max_queue": 64}
    with running_server(**options) as server:
        url, expected = server.url, all_at_once(server.url, bodies)
        port = httpx.URL(url).port
    found: list[list[Any]] = []
    asking = threading.Thread(target=lambda: found.append(all_at_once(url, bodies)))
    for number in range(KILLS):
        with running_server(port=port, **options) as server:
            if number == 0:
                asking.start()
            until(lambda: busy(url), server.log.read_text)
            server.process.kill()
            server.process.wait()
    with running_server(port=port, **options):
        asking.join(PATIENCE_S)
    assert found == [expected]
