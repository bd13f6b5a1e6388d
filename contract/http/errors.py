"""HTTP errors, and handlers that return every failure as OpenAI's error object; for server and daemon."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwen3vl_edge.contract.errors import ContractError, InternalError

_CODES = {404: "not_found", 405: "method_not_allowed"}
LOADING_RETRY_SECONDS = 5
logger = logging.getLogger(__name__)


class HttpError(ContractError):
    """A fault of the HTTP request itself: its method, path, length or content type."""

    def __init__(self, status: int, code: str, message: str, **details: object) -> None:
        super().__init__(message, **details)  # type: ignore[arg-type]
        self.status = status
        self.code = code


def as_contract_error(error: BaseException, request_id: str) -> ContractError:
    """`error` if a client may see it, else an internal error (500); its stack trace goes only to the log."""
    if isinstance(error, ContractError):
        return error
    logger.error("request %r failed", request_id, exc_info=error)
    return InternalError("the server failed on this request", got=f"request {request_id}")


def install_error_handlers(app: FastAPI) -> None:
    """Answer contract errors and HTTP errors with their status, and any other exception with a bare 500."""
    app.add_exception_handler(ContractError, _contract)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _schema)
    app.add_exception_handler(Exception, _unhandled)


def error_response(error: ContractError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for an error, with Retry-After if a retry can help."""
    headers = dict(headers or {})
    if error.status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", LOADING_RETRY_SECONDS))
    return JSONResponse(error.to_openai(), status_code=error.status, headers=headers)


def _answer(request: Request, error: ContractError, headers: dict[str, str] | None = None) -> JSONResponse:
    request.state.error_code = error.code  # for logs
    return error_response(error, headers)


async def _contract(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, as_contract_error(error, ""))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]}"
    code = _CODES.get(error.status_code, "http_error")
    refused = HttpError(error.status_code, code, str(error.detail).lower(), field="path", got=where)
    return _answer(request, refused, dict(error.headers or {}))


async def _schema(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return _answer(request, HttpError(422, "bad_request", str(first["msg"]), field=field))


async def _unhandled(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so uvicorn logs its stack trace.
    return error_response(HttpError(500, "internal_error", "the server failed on this request"))
