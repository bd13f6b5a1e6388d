"""The state that the routes of one daemon share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fastapi import Request

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.http.ledger import (
    BODY_BYTES,
    JSON_VALUES,
    PIXELS,
    VISUAL_TOKENS,
    Account,
    Ledger,
    Resource,
)
from qwen3vl_edge.contract.wire.basis import Bases, bases_of
from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.daemon.concurrency import ConcurrencyLimit
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
from qwen3vl_edge.edge_runtime.daemon.metrics import Metrics
from qwen3vl_edge.edge_runtime.daemon.request_history import RequestHistory

if TYPE_CHECKING:
    from qwen3vl_edge.edge_runtime.daemon.jobs.runner import JobRunner
    from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import Upstream

RESTART_STALLS = 5


class Daemon:
    """Settings, server, pipeline and metrics.

    Attributes:
        upstream: the server that generates.
        started: None until the bundle is open and has passed its self-test.
        failure: why the start failed; the process ends with it.
        bandwidth: to the server; outlives a reload.
        concurrency: the limit on requests in flight.
        fetching: the limit on those that fetch from URLs; a slow web server must leave slots for others.
        ledger: what they hold.
        last_reload: result of the last reload, None before the first.
        history: the last requests and their cost.
        spool: the stored jobs, None without a spool file.
        runner: sends them while the application runs.
    """

    def __init__(
        self,
        config: DaemonConfig,
        upstream: Upstream,
        spool: Spool | None = None,
        bandwidth: BandwidthEstimate | None = None,
    ) -> None:
        self.config = config
        self.upstream = upstream
        self.started: EncodePipeline | None = None
        self.failure: BaseException | None = None
        self.bandwidth = bandwidth or BandwidthEstimate()
        self.concurrency = ConcurrencyLimit(config.max_waiting)
        self.fetching = ConcurrencyLimit(max(1, config.max_waiting // 2))
        self.ledger = open_ledger(config)
        self.last_reload: dict[str, Any] | None = None
        self.metrics = Metrics(lambda: self.started, self.concurrency)
        self.metrics.watch_ledger(self.ledger)
        self.history = RequestHistory()
        self.spool = spool
        self.runner: JobRunner | None = None
        if spool is not None:
            self.metrics.watch_spool(lambda: spool.counts, lambda: spool.unreadable)

    @property
    def pipeline(self) -> EncodePipeline:
        """Raises: ServerUnavailableError: still starting."""
        if self.started is None:
            raise ServerUnavailableError("the daemon is still starting", remedy="Try again when /readyz answers 200.")
        return self.started

    @property
    def working_pipeline(self) -> EncodePipeline:
        """Raises: ServerUnavailableError: still starting, or stuck in one step."""
        name, seconds = self.pipeline.stuck()
        if seconds > self.config.stall_s:
            raise ServerUnavailableError(
                f"the {name} thread is stuck",
                expected=f"a step within {self.config.stall_s:g} s (stall_s)",
                got=f"{seconds:.0f} s",
                remedy="Restart the daemon if it stays so; its log may have the reason.",
            )
        return self.pipeline

    @property
    def beyond_help(self) -> bool:
        """Whether the pipeline has been stuck for so long that only a restart can help."""
        return self.started is not None and self.started.stuck()[1] > RESTART_STALLS * self.config.stall_s

    def account(self, request: Request) -> Account:
        """The claims of a new request; all users of the Unix socket are one client."""
        return self.ledger.open(request.client.host if request.client is not None else "")

    def check_room(self) -> None:
        """Raises: ServerUnavailableError: still starting. QueueFullError: no slot for a request is free now."""
        _ = self.pipeline
        self.concurrency.check()

    def slot(self) -> AbstractContextManager[None]:
        """Hold one of the slots for requests in flight.

        Raises:
            ServerUnavailableError: still starting.
            QueueFullError: all slots are in use.
        """
        _ = self.pipeline
        return self.concurrency.slot()

    @property
    def bases(self) -> Bases:
        """The bases that spooled embeddings may use."""
        return bases_of(None if self.started is None else self.started.edge.basis)

    @property
    def model(self) -> str:
        """Id of the model that answers."""
        return self.pipeline.edge.bundle.manifest.model.id


def open_ledger(config: DaemonConfig) -> Ledger:
    """The ledger of a daemon with these limits."""
    return Ledger(
        [
            Resource(BODY_BYTES, "body", "max_body_mib", config.max_body_mib * 2**20),
            Resource(JSON_VALUES, "body", "max_json_values", config.max_json_values),
            Resource(PIXELS, "messages", "max_pixels", config.max_pixels),
            Resource(VISUAL_TOKENS, "messages", "max_visual_tokens", config.max_visual_tokens),
        ],
        config.max_in_flight_per_client,
        config.max_in_flight,
    )
