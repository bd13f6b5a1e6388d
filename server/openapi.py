"""The OpenAPI document: bodies that handlers parse themselves, the error object, tokens and Idempotency-Key."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from qwen3vl_edge.contract.http.idempotency_key import HEADER, MAX_KEY_CHARACTERS
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE
from qwen3vl_edge.server.generate_json import GenerateBody
from qwen3vl_edge.server.openai.request import ChatRequest

JSON = "application/json"
EVENTS = "text/event-stream"
_REF = "#/components/schemas/{model}"
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_KEY = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Sent again with the same body, the request is answered with the same answer and computed once.",
    "schema": {"type": "string", "pattern": f"^[!-~]([ -~]{{0,{MAX_KEY_CHARACTERS - 2}}}[!-~])?$"},
}


class ErrorDetail(BaseModel):
    """What went wrong.

    Attributes:
        message: the input, the limit and the remedy.
        type: "invalid_request_error", or another of OpenAI's.
        param: the field of the request, or null.
        code: stable identifier for programs.
    """

    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    """OpenAI's error object, for every status from 400 on."""

    error: ErrorDetail


_MODELS: tuple[type[BaseModel], ...] = (GenerateBody, ChatRequest, Error)


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


_ANSWER = {"200": {"description": "The answer", "content": {JSON: {"schema": {"type": "object"}}, EVENTS: {}}}}
GENERATE = {
    **_takes({**_json(GenerateBody), CONTENT_TYPE: _BINARY}),
    "parameters": [_KEY],
    "responses": _ANSWER,
}
CHAT = {**_takes(_json(ChatRequest)), "parameters": [_KEY], "responses": _ANSWER}
FORGET = {"parameters": [{**_KEY, "required": True, "description": "Of the answer that is not needed any more."}]}
HOLD = _takes({CONTENT_TYPE: _BINARY})


def describe_openapi(app: FastAPI) -> None:
    """Add to `/openapi.json` what FastAPI cannot derive from the routes."""
    app.openapi = partial(_document, app)  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
        document["components"] = {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        }
        document["security"] = [{"token": []}, {}]  # a server without a token file requires no token
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # FastAPI's own error form, which no route returns
                operation["responses"]["default"] = {"description": "Error", "content": _json(Error)}
        app.openapi_schema = document
    return app.openapi_schema
