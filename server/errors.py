"""Errors that only a server answers with, beside those of the contract."""

from __future__ import annotations

from contract.errors import ContractError, LimitError, ServerUnavailableError, WireError


class QueueFullError(LimitError):
    """Too many requests wait already.

    Attributes:
        retry_after: whole seconds after which trying again makes sense.
    """

    status = 429
    code = "queue_full"

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            "the server's queue is full", got=f"{waiting} waiting", remedy=f"Try again in {retry_after} s."
        )
        self.retry_after = retry_after


class BodySchemaError(WireError):
    """A JSON body that parses but has a missing, unknown or wrongly typed field."""

    status = 422
    code = "bad_json_body"


class HttpError(ContractError):
    """A fault of the HTTP request itself: its method, path, length or content type."""

    def __init__(self, status: int, code: str, message: str, **details: object) -> None:
        super().__init__(message, **details)  # type: ignore[arg-type]
        self.status = status
        self.code = code


class OutOfMemoryError(ServerUnavailableError):
    """The device had no memory for this request; the server goes on."""

    code = "out_of_memory"


class InternalError(ContractError):
    """A fault of the server; the client learns no more than the request's id."""

    status = 500
    code = "internal_error"
