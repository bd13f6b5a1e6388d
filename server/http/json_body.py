"""JSON bodies: their values are counted and claimed before they are parsed."""

from __future__ import annotations

from functools import partial

from fastapi import Request

from qwen3vl_edge.contract.formats.strict_json import check_values
from qwen3vl_edge.contract.http.body import read_body
from qwen3vl_edge.contract.http.ledger import JSON_VALUES, Account
from qwen3vl_edge.server.state import ServerState


async def read_json(
    request: Request, state: ServerState, account: Account, limit: int, max_values: int, setting: str
) -> bytes:
    """Read a JSON body of at most `limit` bytes, never compressed, and claim its values; it is not parsed.

    Args:
        max_values: the most JSON values, which `setting` sets.

    Raises:
        HttpError, LimitError: as `read_body`; or more values than `max_values`, or than fit beside other requests'.
    """
    body = await read_body(request, limit, state.options.body_timeout_s, account=account)
    state.metrics.received_bytes.inc(request.state.received_bytes)
    content = bytes(body)
    values = await state.parse(partial(check_values, content, max_values, "body", setting))
    await account.wait_for(JSON_VALUES, values)
    return content
