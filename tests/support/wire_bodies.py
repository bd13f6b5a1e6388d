"""Bodies as they travel, whole and with a header that was tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest

HeaderEdit = Callable[[dict[str, Any]], object]


def body_of(request: GenerateRequest) -> bytes:
    """The request's body in one piece."""
    return bytes(encode_request(request))


def with_header(body: bytes, edit: HeaderEdit) -> bytes:
    """The body, its header's table changed in place by `edit`; the tensors' bytes stay."""
    length = int.from_bytes(body[:8], "little")
    table = json.loads(body[8 : 8 + length])
    edit(table)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


def with_document(body: bytes, **changes: object) -> bytes:
    """The body with these keys of its request document replaced."""

    def edit(table: dict[str, Any]) -> None:
        document = json.loads(table["__metadata__"]["request"])
        table["__metadata__"]["request"] = json.dumps({**document, **changes})

    return with_header(body, edit)
