"""The last requests and their cost, in memory only: no prompt, no picture, no answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.errors import ContractError, InternalError
from qwen3vl_edge.contract.http.disconnect import CLIENT_CLOSED_REQUEST
from qwen3vl_edge.edge_runtime.daemon.chat import Progress, evidence, usage
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt

CAPACITY = 100


@dataclass
class Entry:
    """A request in flight; its fields are filled in as they become known.

    Attributes:
        encoded: None until it is encoded.
        progress: of its answer; None before the upload, and for requests that are only encoded.
    """

    encoded: EncodedPrompt | None = None
    progress: Progress | None = None


class RequestHistory:
    """A ring buffer of ended requests; a new one evicts the oldest."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    @contextmanager
    def entry(self, endpoint: str) -> Iterator[Entry]:
        """A request for as long as the block runs; its row is added when the block ends, with or without an error."""
        entry, began, started = Entry(), time.time(), time.perf_counter()
        failure: BaseException | None = None
        try:
            yield entry
        except BaseException as error:
            failure = error
            raise
        finally:
            row = _row(entry, failure)
            row["seconds"]["total"] = round(time.perf_counter() - started, 6)
            with self._lock:
                self._rows.append({"time": round(began, 3), "endpoint": endpoint, **row})

    def newest_first(self) -> list[dict[str, Any]]:
        """Rows as `GET /v1/requests/recent` returns them."""
        with self._lock:
            return list(reversed(self._rows))


def _row(entry: Entry, failure: BaseException | None) -> dict[str, Any]:
    encoded, progress = entry.encoded, entry.progress
    status, code = _outcome(progress, failure)
    row: dict[str, Any] = {"id": None, "status": status, "error": code, "media": [], "usage": None, "seconds": {}}
    if encoded is None:
        return row | {"sent_bytes": 0}
    progress = progress or Progress()
    return row | {"id": encoded.request.request_id, "usage": usage(encoded, progress), **evidence(encoded, progress)}


def _outcome(progress: Progress | None, failure: BaseException | None) -> tuple[int, str | None]:
    """HTTP status as the client would have received it, and the error's code."""
    if failure is None and progress is not None:
        failure = progress.failure
    if isinstance(failure, ContractError):
        return failure.status, failure.code
    if isinstance(failure, Exception):
        return InternalError.status, InternalError.code
    if failure is not None or (progress is not None and not progress.complete):
        return CLIENT_CLOSED_REQUEST, "client_left"
    return 200, None
