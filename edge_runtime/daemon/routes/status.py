"""Liveness, readiness, models, metrics and the history of requests."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from qwen3vl_edge.contract.bundle.model_hash import rule_of
from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline

ROUTES = ("/healthz", "/readyz", "/v1/models", "/v1/requests/recent")


def status_routes(daemon: Daemon) -> APIRouter:
    """The routes that need no request body."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 as long as no worker has died, even while the encoder is stuck: see `/readyz`."""
        if daemon.runner is not None and (failure := daemon.runner.failure) is not None:
            raise ServerUnavailableError(f"jobs are not sent ({failure})", remedy="Its log has the stack trace.")
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """200 once this device can encode, 503 while it is stuck; the body also has the state of the server."""
        pipeline = daemon.working_pipeline
        server = await daemon.upstream.ready()
        return {
            "status": "ready",
            **_describe(pipeline),
            "server": _server_status(daemon, server),
            "last_reload": daemon.last_reload,
            **({} if daemon.upstream.evidence is None else {"server_evidence": daemon.upstream.evidence}),
        }

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        card = {"id": daemon.model, "object": "model", "created": started, "owned_by": "qwen3vl-edge"}
        return {"object": "list", "data": [{**card, **_describe(daemon.pipeline)}]}

    @router.get("/v1/requests/recent")
    async def recent() -> dict[str, Any]:
        """The last requests, newest first, with the cost of each."""
        return {"object": "list", "data": daemon.history.newest_first()}

    @router.get("/metrics")
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(daemon.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _server_status(daemon: Daemon, readiness: dict[str, Any] | None) -> str:
    """Whether the server would serve this device, judged by its `/readyz` and its last answer."""
    edge = daemon.pipeline.edge
    model_hash = edge.bundle.manifest.model.model_hash
    if readiness is None:
        return "not reachable or not ready"
    if not daemon.upstream.let_in:
        return "ready, but does not let this device in: see server_api_key and the server's tokens_file"
    served = readiness.get("model_hash", model_hash)
    if isinstance(served, str) and rule_of(served) != rule_of(model_hash):
        return "ready, but of another release than the bundle: export the bundle again, with the server's release"
    if served != model_hash:
        return "ready, but serves another model than the bundle's"
    if edge.basis is not None and edge.basis.sha256 not in readiness.get("wire_bases", ()):
        return "ready, but does not hold the bundle's basis: see wire_dtype and the server's wire_basis"
    return "ready"


def _describe(pipeline: EncodePipeline) -> dict[str, Any]:
    edge = pipeline.edge
    geometry = edge.policy.geometry
    return {
        "model_hash": edge.bundle.manifest.model.model_hash,
        "backend": edge.encoder.name,
        **({"backend_reason": edge.backend_reason} if edge.backend_reason else {}),
        "precision": edge.encoder.precision,
        "buckets": [str(grid) for grid in edge.encoder.serves.buckets],
        "any_size": edge.encoder.serves.dynamic,
        "patch_size": geometry.patch_size,
        "merge_size": geometry.merge_size,
        "temporal_patch_size": geometry.temporal_patch_size,
    }
