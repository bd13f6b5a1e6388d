"""The `Idempotency-Key` header: a request that is retried because its answer got lost is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3vl_edge.contract.http.errors import HttpError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 128


def idempotency_key(headers: Headers) -> str | None:
    """The request's key, None without one.

    Raises:
        HttpError: 400: the header is repeated, empty, too long, or has non-printable characters.
    """
    values = headers.getlist(HEADER)
    if not values:
        return None
    key = values[0]
    if len(values) > 1 or not 1 <= len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise HttpError(
            400,
            "bad_idempotency_key",
            "bad idempotency key",
            field=HEADER,
            expected=f"one, of 1 to {MAX_KEY_CHARACTERS} printable ASCII characters",
            got=f"{len(values)}, the first {key[:40]!a}",
        )
    return key
