"""Coverage-guided fuzzing (atheris) of what reads a client's bytes: no request, no engine, the decoders alone.

python -m qwen3vl_edge.tools.dev.fuzz.decoders --seconds 600 [--runs N] [--seed 1]

A decoder returns or raises a ContractError. Anything else, an input that takes over 5 s or 512 MiB, and a body that
reads otherwise once written again ends the run with exit code 77, and libFuzzer writes the input to `crash-…`.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["qwen3vl_edge.contract", "qwen3vl_edge.server"]):
    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.contract.errors import ContractError
    from qwen3vl_edge.contract.wire.codec import decode_medium, decode_request, encode_request
    from qwen3vl_edge.contract.wire.request import Limits
    from qwen3vl_edge.server.engines.checkpoint_config import model_shape
    from qwen3vl_edge.server.generate_json import decode_json
    from qwen3vl_edge.server.generation.keyed import fingerprint
    from qwen3vl_edge.server.openai.request import parse_chat
    from qwen3vl_edge.server.openai.tensor_formats import read_tensor

from qwen3vl_edge.contract.wire.basis import Bases, bases_of
from qwen3vl_edge.contract.wire.request import ModelShape
from qwen3vl_edge.tools.dev.fuzz.targets import CHAT, Target, drawn_basis, targets

LIMITS = Limits(max_body_bytes=2**20)
SECONDS_OF_ONE, MEBIBYTES = 5, 512


def _request(data: bytes, bases: Bases) -> None:
    request = decode_request(data, LIMITS, bases=bases)
    again = decode_request(bytes(encode_request(request)), LIMITS)
    if fingerprint(again) != fingerprint(request):
        raise AssertionError("the request reads otherwise once it is written again")


def decoders(shape: ModelShape) -> list[Callable[[bytes], object]]:
    """Whatever reads bytes that a client chose; the first byte of an input says which."""
    bases = bases_of(drawn_basis(shape))
    return [
        lambda data: _request(data, bases),
        lambda data: decode_medium(data, LIMITS, bases, model=shape),
        lambda data: read_tensor(data, "x"),
        lambda data: decode_json(data, shape, LIMITS),
        lambda data: parse_chat(data, 20_000, 2**18),
    ]


def corpus(wanted: list[Target]) -> Iterator[bytes]:
    """Where to begin: the bodies that the server answers well, and the tensors in their base64."""
    for target in wanted:
        if target.is_binary:
            yield (b"\1" if target.name == "put" else b"\0") + target.body
        elif target.is_json and target.path != CHAT:
            yield b"\3" + target.body
        elif target.is_json:
            yield b"\4" + target.body
            yield from (b"\2" + tensor for tensor in _tensors(json.loads(target.body)))


def _tensors(chat: object) -> Iterator[bytes]:
    if isinstance(chat, dict):
        for name, value in chat.items():
            if name.endswith(("_embeds", "_thw")) and isinstance(value, str):
                yield base64.b64decode(value)
            else:
                yield from _tensors(value)
    elif isinstance(chat, list):
        for value in chat:
            yield from _tensors(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--runs", type=int, default=-1, help="inputs; -1 for as many as the time allows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="reference/qwen3vl-tiny")
    arguments = parser.parse_args()
    shape = model_shape(open_checkpoint(arguments.model))
    readers = decoders(shape)

    def one(data: bytes) -> None:
        if not data:
            return
        with suppress(ContractError):
            readers[data[0] % len(readers)](data[1:])

    with tempfile.TemporaryDirectory(prefix="qwen3vl-corpus-") as folder:
        for index, body in enumerate(corpus(targets(shape))):
            (Path(folder) / f"{index:03}").write_bytes(body)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # libraries, and the instrumented modules
        limits = [f"-timeout={SECONDS_OF_ONE}", f"-rss_limit_mb={own + MEBIBYTES}", f"-malloc_limit_mb={MEBIBYTES}"]
        span = [f"-max_total_time={arguments.seconds}", f"-runs={arguments.runs}", f"-seed={arguments.seed}"]
        atheris.Setup([sys.argv[0], "-max_len=65536", *limits, *span, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
