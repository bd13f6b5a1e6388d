"""Workers that fail are started again and told; which refusals a job waits out, and which end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from qwen3vl_edge.contract.errors import ContractError, InputError, KeyReusedError, ModelMismatchError
from qwen3vl_edge.contract.http.errors import install_error_handlers
from qwen3vl_edge.edge_runtime.client.answers import Event, refused
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Job, NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.runner import JobRunner
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
from qwen3vl_edge.edge_runtime.daemon.jobs.spooled_prompt import to_disk
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.daemon.routes.status import status_routes
from qwen3vl_edge.edge_runtime.daemon.upstreams.openai_server import ModelNotServedError
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import OnSent
from qwen3vl_edge.edge_runtime.edge import EdgeTimings, EncodedPrompt
from tests.support.server_checkpoint import make_case
from tests.support.waiting import PATIENCE_S

CASE = make_case("one image")
MODEL = str(CASE.request.model_hash)
FINAL: dict[str, Any] = {"finish_reason": "stop", "usage": {"completion_tokens": 1}}


class Server:
    """An upstream that does what it is told to.

    Attributes:
        ready_faults, faults: raised by the next calls, one each.
        sent: ids of the requests that reached it.
    """

    evidence: dict[str, Any] | None = None
    let_in = True

    def __init__(self) -> None:
        self.ready_faults: list[Exception] = []
        self.faults: dict[str, list[Exception]] = {}
        self.finals: dict[str, dict[str, Any]] = {}
        self.model = MODEL
        self.sent: list[str] = []

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def ready(self) -> dict[str, Any] | None:
        if self.ready_faults:
            raise self.ready_faults.pop(0)
        return {"model_hash": self.model}

    def check(self, chat: ChatRequest) -> None: ...

    async def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: OnSent
    ) -> AsyncGenerator[Event, None]:
        name = encoded.request.request_id
        self.sent.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        yield Event("red")
        yield Event("", self.finals.get(name, FINAL))

    def forget(self, request_id: str) -> None: ...


class Jobs:
    """A spool and its runner, with a server that does what it is told to."""

    def __init__(self, path: Path) -> None:
        self.server, self.spool = Server(), Spool(path, 2**24, 100)
        config = DaemonConfig(bundle=path, spool=path)
        self.daemon = Daemon(config, self.server, self.spool)
        self.runner = self.daemon.runner = JobRunner(self.spool, self.server, config)
        self._app = FastAPI()
        install_error_handlers(self._app)
        self._app.include_router(status_routes(self.daemon))

    async def add(self, name: str) -> None:
        chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "What colour?"}]})
        request = replace(CASE.request, request_id=name)
        times = EdgeTimings(0.0, (0.0,) * len(request.media))
        document, body = to_disk(chat, EncodedPrompt("m", request, (), times))
        await self.spool.add(NewJob(name, None, "hash", document, body, 1000.0))
        self.runner.wake()

    async def job(self, name: str) -> Job:
        job = await self.spool.get(name)
        assert job is not None
        return job

    async def status(self, name: str) -> str:
        return (await self.job(name)).status

    async def health(self) -> httpx.Response:
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://daemon") as client:
            return await client.get("/healthz")


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async def wait() -> None:
        while not await what():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), PATIENCE_S)


def with_jobs(path: Path, work: Callable[[Jobs], Awaitable[None]]) -> None:
    async def run() -> None:
        jobs = Jobs(path / "jobs.db")
        jobs.runner.start()
        try:
            await work(jobs)
        finally:
            await jobs.runner.stop()
            jobs.spool.close()

    asyncio.run(run())


def test_a_worker_that_fails_is_told_and_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(jobs: Jobs) -> None:
        assert (await jobs.health()).status_code == 200
        jobs.server.ready_faults = [KeyError("a fault of ours"), ZeroDivisionError()]
        await jobs.add("a")

        async def failing() -> bool:
            return jobs.runner.failure == "worker 0: ZeroDivisionError"

        await until(failing)
        told = await jobs.health()
        assert told.status_code == 503
        assert "worker 0: ZeroDivisionError" in told.json()["error"]["message"]

        async def done() -> bool:
            return await jobs.status("a") == "done"

        await until(done)

        async def well() -> bool:
            return (await jobs.health()).status_code == 200

        await until(well)
        assert jobs.runner.failure is None

    with_jobs(tmp_path, work)
    assert "Traceback" in caplog.text
    assert "KeyError: 'a fault of ours'" in caplog.text


def test_a_worker_that_somebody_ends_is_told(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        jobs.runner._tasks[0].cancel()

        async def told() -> bool:
            return (await jobs.health()).status_code == 503

        await until(told)

    with_jobs(tmp_path, work)


def test_a_job_that_nobody_foresaw_fails_alone(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        jobs.server.finals["bad"] = {**FINAL, "finish_reason": {1, 2}, "server": object()}  # no JSON
        jobs.server.faults["worse"] = [RuntimeError("a fault of ours")]
        for name in ("bad", "worse", "good"):
            await jobs.add(name)

        async def done() -> bool:
            return await jobs.status("good") == "done"

        await until(done)
        for name in ("bad", "worse"):
            job = await jobs.job(name)
            assert (job.status, (job.error or {})["code"]) == ("failed", "internal_error")
        assert jobs.runner.failure is None

    with_jobs(tmp_path, work)


def answered(status: int, code: str) -> ContractError:
    """A server's refusal, as the client reads it."""
    return refused({"error": {"message": "no", "code": code}}, status)


@pytest.mark.parametrize(
    "refusal",
    [
        answered(401, "invalid_api_key"),
        answered(404, "not_found"),
        answered(405, "method_not_allowed"),
        answered(409, "model_mismatch"),
        answered(429, "queue_full"),
        answered(503, "server_unavailable"),
        answered(500, "internal_error"),
        ModelMismatchError("the embeddings use a basis that the server does not have"),
        ModelNotServedError("the server does not serve the requested model"),
    ],
    ids=lambda error: f"{error.status} {error.code}",
)
def test_what_another_server_may_accept_waits(
    tmp_path: Path, refusal: ContractError, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(jobs: Jobs) -> None:
        jobs.server.faults["a"] = [refusal]
        await jobs.add("a")

        async def done() -> bool:
            return await jobs.status("a") == "done"

        await until(done)
        assert (await jobs.job("a")).attempts == 2

    with_jobs(tmp_path, work)
    told = refusal.status < 500 and refusal.status != 429  # a busy server is nobody's fault
    assert ("job a waits" in caplog.text) == told


@pytest.mark.parametrize(
    "refusal",
    [
        answered(400, "bad_wire_format"),
        answered(413, "limit_exceeded"),
        answered(422, "bad_json_body"),
        answered(409, KeyReusedError.code),
        InputError("clips cannot be sent to this kind of server"),
    ],
    ids=lambda error: f"{error.status} {error.code}",
)
def test_what_no_server_will_accept_fails_at_once(tmp_path: Path, refusal: ContractError) -> None:
    async def work(jobs: Jobs) -> None:
        jobs.server.faults["a"] = [refusal]
        await jobs.add("a")

        async def failed() -> bool:
            return await jobs.status("a") == "failed"

        await until(failed)
        assert jobs.server.sent == ["a"]
        assert ((await jobs.job("a")).error or {})["code"] == refusal.code

    with_jobs(tmp_path, work)


def test_another_model_is_sent_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(jobs: Jobs) -> None:
        jobs.server.model = "ef" * 32
        await jobs.add("a")

        async def told() -> bool:
            return "job a waits: the server runs another model" in caplog.text

        await until(told)
        assert jobs.server.sent == []
        jobs.server.model = MODEL

        async def done() -> bool:
            return await jobs.status("a") == "done"

        await until(done)
        assert jobs.server.sent == ["a"]

    with_jobs(tmp_path, work)
