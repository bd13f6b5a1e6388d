"""Errors that only a server answers with, beside those of the contract."""

from __future__ import annotations

from contract.errors import ServerUnavailableError, WireError


class BodySchemaError(WireError):
    """A JSON body that parses but has a missing, unknown or wrongly typed field."""

    status = 422
    code = "bad_json_body"


class OutOfMemoryError(ServerUnavailableError):
    """The device had no memory for this request; the server goes on."""

    code = "out_of_memory"
