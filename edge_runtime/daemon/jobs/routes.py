"""`/v1/jobs`: chat requests that are stored until the server can be reached.

202 means that the job is on the disk. It was checked and encoded before, so a bad request is refused at once, and
the disk has embeddings and text, never pixels.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.idempotency_key import idempotency_key
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Job, NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
from qwen3vl_edge.edge_runtime.daemon.jobs.spooled_prompt import to_disk
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.daemon.routes.chat import encode_chat, read_chat, with_request_id

ROUTES = ("/v1/jobs", "/v1/jobs/{id}")


def job_routes(daemon: Daemon) -> APIRouter:
    """The routes; without a spool their error names the setting."""
    router = APIRouter()

    @router.post("/v1/jobs")
    async def accept(request: Request) -> Response:
        """A chat request's body to a job; the same Idempotency-Key gives the same job."""
        spool = _spool(daemon)
        key = idempotency_key(request.headers)
        with daemon.history.entry("job") as entry, daemon.account(request) as account:
            chat = await read_chat(request, daemon, account)
            with daemon.slot():
                digest = await run_in_threadpool(_digest, chat)
                if key is not None and (existing := await spool.find(key, digest)) is not None:
                    return JSONResponse(_accepted(existing), status_code=202)
                spool.check_room()  # before a picture is encoded for nothing
                job_id = f"job-{uuid.uuid4().hex}"
                daemon.upstream.check(chat)
                encoded = entry.encoded = with_request_id(await encode_chat(request, chat, daemon, account), job_id)
                document, body = await run_in_threadpool(to_disk, chat, encoded)
                job = await spool.add(NewJob(job_id, key, digest, document, body, daemon.config.job_deadline_s))
        if daemon.runner is not None:
            daemon.runner.wake()
        return JSONResponse(_accepted(job), status_code=202)

    @router.get("/v1/jobs")
    async def newest(limit: int = Query(20, ge=1, le=1000)) -> dict[str, Any]:
        """The newest jobs first, without their answers."""
        return {"object": "list", "data": [_summary(job) for job in await _spool(daemon).newest(limit)]}

    @router.get("/v1/jobs/{job_id}")
    async def show(job_id: str) -> dict[str, Any]:
        """One job, with its answer or error once it has ended."""
        job = await _spool(daemon).get(job_id)
        if job is None:
            raise _unknown(job_id)
        return {**_summary(job), "answer": job.answer, "error": job.error}

    @router.delete("/v1/jobs/{job_id}")
    async def remove(job_id: str) -> dict[str, Any]:
        """Cancel a job, or remove one that has ended."""
        if not await _spool(daemon).remove(job_id):
            raise _unknown(job_id)
        if daemon.runner is not None:
            daemon.runner.cancel(job_id)
        return {"id": job_id, "object": "job", "deleted": True}

    return router


def _spool(daemon: Daemon) -> Spool:
    if daemon.spool is None:
        raise HttpError(
            404, "jobs_off", "this daemon has no spool for jobs", field="spool", remedy="Set `spool` to a file."
        )
    return daemon.spool


def _digest(chat: ChatRequest) -> str:
    """sha256 of the request without `stream`, which does not change a job."""
    return hashlib.sha256(chat.model_dump_json(exclude_unset=True, exclude={"stream"}).encode()).hexdigest()


def _summary(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "created": int(job.created),
        "expires": int(job.deadline),
        "attempts": job.attempts,
    }


def _accepted(job: Job) -> dict[str, Any]:
    return {**_summary(job), "status": "accepted"}


def _unknown(job_id: str) -> HttpError:
    return HttpError(404, "no_such_job", "no such job", field="id", got=repr(job_id)[:80])
