"""The wire against its floor and its peers: from arrays on the device to tensors on the server, two processes.

python -m qwen3vl_edge.tools.dev.bench.wire --out docs/reports/benchmarks/wire.json

Each time is from embeddings in one process's memory until the other process has them as tensors and has confirmed it,
over loopback: encode, send, receive, decode. The floor copies the same bytes once and sends them. `ours over HTTP` is
what `qwen3vl-edge ask` and the server do: httpx to a uvicorn that reads the body as the server does; `daemon over HTTP`
has httpx on asyncio's loop in its place. Formats in turn, in another order each round; ratios are to the floor of the
same round. All tensors are first held against what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import multiprocessing
import random
import socket
import statistics
import struct
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.tools.dev.bench.measurement import write_document
from qwen3vl_edge.tools.dev.bench.wire_formats import ANY, FORMATS, Arrays, pictures, request_of, tensors_of

FLOOR = "memcpy and send"
HTTP, DAEMON_HTTP, GRPC = "ours over HTTP", "daemon over HTTP", "gRPC, protobuf bytes"
GRPC_METHOD = "/bench.Wire/Send"
GRPC_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_HEAD = struct.Struct("<QB")
Send = Callable[[Arrays, bool], tuple[int, str]]
"""Bring them over: bytes sent, and where asked for the sha256 of what arrived."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.images.split(",")]
    rows = measure(counts, arguments.rounds)
    write_document(arguments.out, {"rounds": arguments.rounds, "rows": rows, "not_run": not_run()})
    for row in rows:
        print(f"{row['images']} {row['name']}: {row['median_ms']:.2f} ms, {row['ratio']:.2f} times, {row['share']:.4f}")


def not_run() -> dict[str, str]:
    """Formats whose packages are not installed here, and how to get them."""
    needed = {"msgpack": "msgpack", GRPC: "grpc"}
    return {
        name: f"{package} is not installed: pip install 'qwen3vl-edge[bench]'"
        for name, package in needed.items()
        if importlib.util.find_spec(package) is None
    }


def measure(counts: list[int], rounds: int, formats: Collection[str] = tuple(FORMATS)) -> list[dict[str, Any]]:
    """Rows for each number of images: of these formats, the floor among them, and of HTTP and gRPC."""
    with ExitStack() as stack:
        missing = not_run()
        senders = {name: stack.enter_context(_over_socket(name)) for name in formats if name not in missing}
        senders[HTTP] = stack.enter_context(_over_http())
        senders[DAEMON_HTTP] = stack.enter_context(_over_http_of_the_daemon())
        if GRPC not in missing:
            senders[GRPC] = stack.enter_context(_over_grpc())
        return [row for count in counts for row in _rows(count, rounds, senders)]


def _rows(count: int, rounds: int, senders: dict[str, Send]) -> list[dict[str, Any]]:
    arrays = pictures(count)
    plain = sum(array.nbytes for array in arrays)
    wanted = _digest([array.data for array in arrays])
    names = [name for name in senders if name not in FORMATS or FORMATS[name].most >= count]
    sizes: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        sizes[name], arrived = senders[name](arrays, True)
        assert arrived == wanted, f"{name} brought something else"
    for number in range(rounds):
        for name in random.Random(number).sample(names, len(names)):
            started = time.perf_counter()
            senders[name](arrays, False)
            seconds[name].append(time.perf_counter() - started)
    return [
        {
            "images": count,
            "name": name,
            "bytes": sizes[name],
            "share": sizes[name] / plain,
            "median_ms": statistics.median(values) * 1e3,
            "spread_ms": [min(values) * 1e3, max(values) * 1e3],
            "ratio": statistics.median(own / floor for own, floor in zip(values, seconds[FLOOR], strict=True)),
        }
        for name, values in seconds.items()
    ]


def _digest(parts: list[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _said(tensors: list[Any], check: bool) -> str:
    """What the receiver answers: the hash of its tensors, or that they are there."""
    return _digest([tensor.numpy().data for tensor in tensors]) if check else "-"


@contextmanager
def _receiver(target: Callable[..., None], *arguments: Any) -> Iterator[int]:
    """A process that receives; its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


@contextmanager
def _over_socket(name: str) -> Iterator[Send]:
    encode = FORMATS[name].encode
    with _receiver(_receive, name) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send(arrays: Arrays, check: bool) -> tuple[int, str]:
            buffers = encode(arrays)
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            connection.sendall(_HEAD.pack(size, check))
            for buffer in buffers:
                connection.sendall(buffer)
            return size, connection.recv(64, 0 if not check else socket.MSG_WAITALL).decode()

        yield send


def _receive(pipe: Any, name: str) -> None:
    import torch  # noqa: F401  # imported before the first body comes

    decode = FORMATS[name].decode
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        connection = listener.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := connection.recv(_HEAD.size, socket.MSG_WAITALL):
            size, check = _HEAD.unpack(head)
            body = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
            position = 0
            while position < size:
                position += connection.recv_into(body[position:])
            connection.sendall(_said(decode(body), bool(check)).encode())


def _http_request(arrays: Arrays, check: bool) -> tuple[WireBody, dict[str, str]]:
    """Body and headers."""
    body = encode_request(request_of(arrays))
    return body, body.headers | {"X-Check": str(int(check))}


@contextmanager
def _over_http() -> Iterator[Send]:
    import httpx

    with _receiver(_serve_http) as port, httpx.Client(timeout=60) as client:

        def send(arrays: Arrays, check: bool) -> tuple[int, str]:
            body, headers = _http_request(arrays, check)
            answer = client.post(f"http://127.0.0.1:{port}/", content=iter(body.buffers), headers=headers)  # type: ignore[arg-type]
            return body.size, answer.text

        yield send


@contextmanager
def _over_http_of_the_daemon() -> Iterator[Send]:
    import httpx

    loop = asyncio.new_event_loop()
    with _receiver(_serve_http) as port:
        client = httpx.AsyncClient(timeout=60)

        async def post(arrays: Arrays, check: bool) -> tuple[int, str]:
            body, headers = _http_request(arrays, check)

            async def chunks() -> AsyncIterator[Any]:
                for chunk in body.buffers:
                    yield chunk

            answer = await client.post(f"http://127.0.0.1:{port}/", content=chunks(), headers=headers)
            return body.size, answer.text

        yield lambda arrays, check: loop.run_until_complete(post(arrays, check))
        loop.run_until_complete(client.aclose())
        loop.close()


def _serve_http(pipe: Any) -> None:
    import torch  # noqa: F401
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from qwen3vl_edge.contract.http.body import read_body
    from qwen3vl_edge.contract.http.listener import http_server

    async def take(request: Request) -> PlainTextResponse:
        body = await read_body(request, ANY.max_body_bytes, 60.0)
        tensors = await run_in_threadpool(lambda: tensors_of(decode_request(body, ANY)))
        return PlainTextResponse(_said(tensors, request.headers["x-check"] == "1"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        app = Starlette(routes=[Route("/", take, methods=["POST"])])
        http_server(app, 0).run(sockets=[listener])


@contextmanager
def _over_grpc() -> Iterator[Send]:
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue, StringValue

    with _receiver(_serve_grpc) as port, grpc.insecure_channel(f"127.0.0.1:{port}", GRPC_OPTIONS) as channel:
        call = channel.unary_unary(GRPC_METHOD, BytesValue.SerializeToString, StringValue.FromString)

        def send(arrays: Arrays, check: bool) -> tuple[int, str]:
            message = BytesValue(value=b"".join(array.data for array in arrays))
            checksum = call(message, metadata=(("check", str(int(check))),))
            return message.ByteSize(), str(checksum.value)

        yield send


def _serve_grpc(pipe: Any) -> None:
    import grpc
    import torch  # noqa: F401
    from google.protobuf.wrappers_pb2 import BytesValue, StringValue

    def take(message: Any, context: Any) -> Any:
        check = dict(context.invocation_metadata()).get("check") == "1"
        return StringValue(value=_said(FORMATS[FLOOR].decode(memoryview(bytearray(message.value))), check))

    handler = grpc.unary_unary_rpc_method_handler(take, BytesValue.FromString, StringValue.SerializeToString)
    service, method = GRPC_METHOD.strip("/").split("/")
    server = grpc.server(ThreadPoolExecutor(1), options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
