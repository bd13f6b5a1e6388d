"""One mutated request: where its parts are known they are changed one by one, so that most get past the first check."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen3vl_edge.contract.formats.safetensors_layout import DTYPE_BYTES
from qwen3vl_edge.tools.dev.fuzz.targets import Target
from qwen3vl_edge.tools.dev.fuzz.values import mutate_document, odd, write

Table = dict[str, Any]
Bodies = Callable[[bytes, random.Random, "list[Target]"], bytes]


@dataclass(frozen=True)
class Mutant:
    """A request to send, and what was done to it."""

    target: Target
    how: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


def mutant(targets: list[Target], seed: int, index: int) -> Mutant:
    """The request of this number: the same for the same seed and targets."""
    rng = random.Random(f"{seed}:{index}")
    target = rng.choices(targets, [item.weight for item in targets])[0]
    how, body = "as it is", target.body
    if body and rng.random() < 0.93:
        kinds = BINARY if target.is_binary else JSON if target.is_json else BYTES
        how = rng.choice(list(kinds))
        body = kinds[how](body, rng, targets)
    result = Mutant(target, how, target.method, target.path, list(target.headers), body)
    if rng.random() < 0.15 or not target.body:
        result = replace(result, how=f"{how}, headers", headers=_headers(result.headers, rng))
    if rng.random() < 0.05 or not target.body:
        result = replace(result, how=f"{result.how}, path", path=_path(result.path, rng, targets))
    if rng.random() < 0.02:
        method = rng.choice(("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "X" * 40))
        result = replace(result, how=f"{result.how}, method", method=method)
    return result


def _flip(body: bytes, rng: random.Random, targets: list[Target]) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _truncate(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    return body[: rng.choice((0, 1, 7, 8, 9, len(body) - 1, rng.randrange(len(body))))]


def _extend(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    return body + rng.choice((b"\x00", b"\n", b"x" * 8, body, b"{}", b"\xff" * rng.randrange(1, 300)))


def _splice(body: bytes, rng: random.Random, targets: list[Target]) -> bytes:
    other = rng.choice([item.body for item in targets if item.body])
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other)) :]


def _remove(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    start = rng.randrange(len(body))
    return body[:start] + body[start + rng.choice((1, 2, 8, 100)) :]


def split(body: bytes) -> tuple[Table, bytes]:
    """A container's table and the bytes of its tensors."""
    length = int.from_bytes(body[:8], "little")
    table: Table = json.loads(body[8 : 8 + length])
    return table, body[8 + length :]


def _join(text: bytes, data: bytes, length: int | None = None) -> bytes:
    return ((len(text) if length is None else length) % 2**64).to_bytes(8, "little") + text + data


def _table(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    """Dtypes, shapes, offsets and names, as they stand in the header."""
    table, data = split(body)
    return _join(write(mutate_document(table, rng, rng.choice((1, 1, 2, 4))), rng), data)


def _document(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    """The request document within the metadata."""
    table, data = split(body)
    document = mutate_document(json.loads(table["__metadata__"]["request"]), rng, rng.choice((1, 1, 2, 4)))
    table["__metadata__"]["request"] = write(document, rng).decode("utf-8", "surrogatepass")
    return _join(json.dumps(table).encode(), data)


def _one_tensor(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    """One entry of the table: another dtype, shape or place, in ways that such a table goes wrong."""
    table, data = split(body)
    names = [name for name in table if name != "__metadata__"]
    entry = table[name := rng.choice(names)]
    shape, offsets = entry["shape"], entry["data_offsets"]
    action = rng.randrange(8)
    if action == 0:
        entry["dtype"] = rng.choice([*DTYPE_BYTES, "F4", "", "f16", None])
    elif action == 1 and shape:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, -1, 2**31, 2**63, 2**70, 1.0, True, "1", None))
    elif action == 2:
        entry["shape"] = rng.choice(
            ([], [0], [1] * 8, [1] * 9, shape[::-1], [*shape, 1], [0, 2**70], [2**40, 2**40, 0])
        )
    elif action == 3:
        offsets[rng.randrange(2)] = rng.choice((0, 1, -1, 2**63, 2**70, offsets[1] + 1, offsets[0] - 1, 1.5, None))
    elif action == 4:
        entry["data_offsets"] = rng.choice((offsets[::-1], [], [0], [*offsets, 0], None))
    elif action == 5:
        table[rng.choice(("embeds.1", "embeds.-1", "deepstack.0.9", "input_ids ", "é", "\ud800", "x" * 500))] = (
            table.pop(name)
        )
    elif action == 6:
        table[rng.choice(("extra", "embeds.7", "attention_mask"))] = {
            "dtype": rng.choice(list(DTYPE_BYTES)),
            "shape": rng.choice(([0], [0, 2**62], [0, 2**63], [2**64, 0], [0] * 8)),
            "data_offsets": [offsets[1], offsets[1]],
        }
    else:
        del table[name]
    return _join(json.dumps(table).encode(), data)


def _rebuilt(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    """A container that holds together, with one tensor of other values or another form: what only the model's own
    checks can find."""
    table, data = split(body)
    names = sorted((name for name in table if name != "__metadata__"), key=lambda name: table[name]["data_offsets"])
    kinds = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1", "I8": "|i1", "BF16": "<u2"}
    names_of = {kind: name for name, kind in kinds.items()}
    chosen, tensors = rng.choice(names), b""
    for name in names:
        entry = table[name]
        start, end = entry["data_offsets"]
        array = np.frombuffer(data[start:end], kinds.get(entry["dtype"], "|u1")).reshape(entry["shape"])
        if name == chosen:
            array = _other(array, rng)
            if entry["dtype"] in kinds:  # numpy has no 8-bit float
                entry["dtype"] = names_of[array.dtype.str]
            entry["shape"] = list(array.shape)
        entry["data_offsets"] = [len(tensors), len(tensors) + array.nbytes]
        tensors += array.tobytes()
    return _join(json.dumps(table).encode(), tensors)


def _other(array: Any, rng: random.Random) -> Any:
    array = np.array(array)
    action = rng.randrange(8)
    if action == 0 and array.dtype.kind == "f":
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 65504, 6e-8, -0.0))
    elif action == 1 and array.dtype.kind == "f":
        return array.astype("<f4" if array.dtype.itemsize == 2 else "<f2")
    elif action in (0, 1, 2):
        high = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 60000
        values = [
            value
            for value in (0, 1, 2, 4, 5, 6, 319, 320, -1, high)
            if value <= high and (value >= 0 or array.dtype.kind != "u")
        ]
        for _ in range(rng.choice((1, 1, 3))):
            array.flat[rng.randrange(array.size)] = rng.choice(values)
    elif action == 3:
        return array[: rng.randrange(len(array))]
    elif action == 4:
        return np.concatenate([array] * rng.choice((2, 3, 40)))
    elif action == 5:
        return array.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))
    elif action == 6:
        return array.T.copy() if array.ndim > 1 else array[::-1].copy()
    elif array.ndim == 2:
        return array[:, : rng.randrange(array.shape[1])].copy()
    return array


def _header_text(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    """The header as text, and the length that it claims."""
    length = int.from_bytes(body[:8], "little")
    text, data = body[8 : 8 + length], body[8 + length :]
    nested = b"[" * rng.choice((50, 1200, 200_000))
    action = rng.randrange(7)
    if action == 0:
        return _join(
            text, data, rng.choice((0, 1, 2, length - 1, length + 1, 2**22, 2**22 + 1, 2**32, 2**63, 2**64 - 1))
        )
    if action == 1:
        text = rng.choice((nested, b'{"a":' + nested, b'{"a":' * 1200, b"\xef\xbb\xbf" + text, b"\xff\xfe" + text))
    elif action == 2:
        text = rng.choice(
            (b"{}", b"[]", b"null", b"1", b'""', b"NaN", b"9" * 5000, b"  ", b"{", b'{"__metadata__":{}}')
        )
    elif action == 3:
        text = text.replace(b'"shape":[', b'"shape":[' + b"9" * 5000 + b",", 1)
    elif action == 4:
        text = text.replace(
            b'\\"version\\":1', rng.choice((b'\\"version\\":' + b"1" * 5000, b'\\"version\\":1e400')), 1
        )
    elif action == 5:
        text += rng.choice((b" " * 4096, b"\x00", b"}", text))
    else:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice((b"\xed\xa0\x80", b"\xff", b"\\ud800", b"\x00", b'"', b",", b"\\")) + text[at:]
    return _join(text, data)


def _json_document(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    return write(mutate_document(json.loads(body), rng, rng.choice((1, 1, 1, 2, 5))), rng)


def _inner(body: bytes, rng: random.Random, targets: list[Target]) -> bytes:
    """What stands in base64 within a JSON document."""
    document = json.loads(body)
    strings = list(_encoded(document))
    if not strings:
        return _json_document(body, rng, targets)
    holder, key = rng.choice(strings)
    data = base64.b64decode(holder[key])
    changed = BYTES[rng.choice(list(BYTES))](data, rng, targets)
    text = base64.b64encode(changed).decode()
    if rng.random() < 0.1:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(("=", "-", "_", "\n", " ", "é", "data:,", "A")) + text[at:]
    holder[key] = text
    return json.dumps(document).encode()


def _encoded(document: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of the texts that are long enough to be tensors."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        if isinstance(value, str) and len(value) > 100:
            yield document, key
        elif isinstance(value, dict | list):
            yield from _encoded(value)


def _json_text(body: bytes, rng: random.Random, _: list[Target]) -> bytes:
    at = rng.randrange(len(body))
    odd = (
        b"9" * 5000,
        b"1e999",
        b"-",
        b"[" * 3000,
        b'{"":' * 900,
        b"\\ud800",
        b'"\\ud800"',
        b"\xff",
        b"NaN",
        b"Infinity,",
        b"/*",
    )
    return body[:at] + rng.choice(odd) + body[at + rng.choice((0, 0, 1, 5)) :]


BYTES: dict[str, Bodies] = {
    "flip": _flip,
    "truncate": _truncate,
    "extend": _extend,
    "splice": _splice,
    "remove": _remove,
}
BINARY: dict[str, Bodies] = {
    **BYTES,
    "table": _table,
    "document": _document,
    "one tensor": _one_tensor,
    "rebuilt": _rebuilt,
    "header text": _header_text,
}
JSON: dict[str, Bodies] = {
    **BYTES,
    "document": _json_document,
    "more of the document": _json_document,
    "tensor in the document": _inner,
    "more of the tensor": _inner,
    "text": _json_text,
}


_VALUES = (
    *(
        "",
        " ",
        "0",
        "-1",
        "9" * 40,
        "9" * 5000,
        "1.5",
        "é",
        "\xff",
        "gzip",
        "zstd",
        "br, zstd",
        "chunked",
        "*/*",
        "x" * 900,
    ),
    *("application/json", "application/json; charset=utf-16", "text/plain", "Bearer x", "Basic eDp4", "bytes=0-"),
)
_NAMES = (
    *("Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Idempotency-Key", "X-Request-Id"),
    *("Authorization", "Accept", "Accept-Encoding", "Range", "Expect", "X-Forwarded-For", "Host", "Cookie", "X-A"),
)


def _headers(headers: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Latin-1 text that HTTP lets through."""
    changed = list(headers)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(_NAMES)
        if rng.random() < 0.3 and changed:
            changed.pop(rng.randrange(len(changed)))
        elif rng.random() < 0.5:
            changed = [pair for pair in changed if pair[0] != name]
        changed.append((name, rng.choice(_VALUES)))
    return changed


def _path(path: str, rng: random.Random, targets: list[Target]) -> str:
    """Decoded, as the application gets it."""
    strange = str(odd(rng))[:80].encode("utf-8", "replace").decode()
    return rng.choice(
        (
            path + strange,
            path + "/",
            "/" + path,
            path[: rng.randrange(1, len(path) + 1)],
            path.replace("/", "/../", 1),
            path.upper(),
            f"/v1/embeddings/{strange}",
            f"/v1/embeddings/{'0' * 64}",
            "/" + strange,
            "",
            rng.choice(targets).path,
        )
    )
