"""Every failure of a route as OpenAI's error object."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from contract.errors import ContractError, ServerUnavailableError
from server.answers import as_contract_error
from server.errors import HttpError, QueueFullError

_CODES = {404: "not_found", 405: "method_not_allowed"}
LOADING_RETRY_SECONDS = 5


def install_error_handlers(app: FastAPI) -> None:
    """Answer contract errors with their status, HTTP's own faults alike, and all else with a bare 500."""
    app.add_exception_handler(ContractError, _contract)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _schema)
    app.add_exception_handler(Exception, _unhandled)


def error_response(error: ContractError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for an error, with Retry-After where trying again can help."""
    headers = dict(headers or {})
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, ServerUnavailableError):
        headers["Retry-After"] = str(LOADING_RETRY_SECONDS)
    return JSONResponse(error.to_openai(), status_code=error.status, headers=headers)


async def _contract(request: Request, error: Exception) -> JSONResponse:
    return error_response(as_contract_error(error, ""))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]}"
    code = _CODES.get(error.status_code, "http_error")
    refused = HttpError(error.status_code, code, str(error.detail).lower(), field="path", got=where)
    return error_response(refused, dict(error.headers or {}))


async def _schema(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return error_response(HttpError(422, "bad_request", str(first["msg"]), field=field))


async def _unhandled(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so uvicorn logs its stack trace.
    return error_response(HttpError(500, "internal_error", "the server failed on this request"))
