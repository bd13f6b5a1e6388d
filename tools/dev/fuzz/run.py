"""Mutated requests against the real application and a real engine.

python -m qwen3vl_edge.tools.dev.fuzz.run --bodies 100000 --seed 1 [--model reference/qwen3vl-tiny]
    [--out docs/reports/benchmarks/fuzz.json]
python -m qwen3vl_edge.tools.dev.fuzz.run --seed 1 --only 4711     sends that one alone, and shows it

Exit code 1 if a request was answered with a 5xx or without an error object, anything was logged as an error, memory
grew, or the requests as they are were answered otherwise at the end than at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.metadata
import json
import logging
import re
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.contract.machine.resident_memory import resident_bytes
from qwen3vl_edge.contract.wire.basis import bases_of
from qwen3vl_edge.server.app import create_app
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.http.tokens import add_token
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness
from qwen3vl_edge.server.state import open_state
from qwen3vl_edge.tools.dev.fuzz.asgi import Answer, call
from qwen3vl_edge.tools.dev.fuzz.mutate import Mutant, mutant
from qwen3vl_edge.tools.dev.fuzz.port import exchange
from qwen3vl_edge.tools.dev.fuzz.targets import CHAT, Target, drawn_basis, targets
from qwen3vl_edge.tools.dev.server_thread import serving

logger = logging.getLogger("fuzz")
WARM_UP = 0.2  # of the bodies: what is kept fills up, allocators settle
GROWTH = 1.03
PORT_EVERY = 20  # one of so many goes over a real port
SAMPLES = 200
PARSERS = ("fastapi", "h11", "pydantic", "starlette", "uvicorn")  # that read what comes
MOST_FAULTS = 20  # after so many it stops

# Small, so that what the server keeps is full after the warm-up, and what it grants costs little.
LIMITS: dict[str, Any] = {
    "max_body_mib": 1,
    "max_json_body_mib": 1,
    "max_prompt_tokens": 256,
    "max_media": 4,
    "max_visual_tokens": 64,
    "max_new_tokens": 2,
    "body_timeout_s": 0.25,
    "hold_embeddings_mib": 1,
    "hold_disk_mib": 1,
    "prefix_cache_mib": 4,
    "keep_answers": 64,
}


@dataclass
class Tally:
    """What the run has seen so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    over_port: int = 0


class Errors(logging.Handler):
    """Collects what is logged as an error; a server that is sent nonsense has none to tell."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        detail = logging.Formatter().formatException(record.exc_info)[-1500:] if record.exc_info else ""
        self.lines.append(f"{record.name}: {record.getMessage()} {detail}".strip())

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


class Fuzz:
    """A server under test.

    Args:
        app: the application; a second one on the same engine listens at `port`.
        token: lets in.
    """

    def __init__(self, app: Any, port: int, token: str, wanted: list[Target], errors: Errors) -> None:
        self._app, self._port, self._errors = app, port, errors
        self._token = ("Authorization", f"Bearer {token}")
        self.targets = wanted
        self.tally = Tally()

    async def originals(self) -> list[dict[str, Any]]:
        """What every request is answered as it is, without times."""
        key = uuid.uuid4().hex  # what mutants were answered under the key of theirs is another matter
        return [await self._original(target, key) for target in self.targets]

    async def _original(self, target: Target, key: str) -> dict[str, Any]:
        headers = [(name, key if name == HEADER else value) for name, value in target.headers]
        headers.append(self._token)
        answer = await call(self._app, target.method, target.path, headers, target.body)
        if answer.status not in (target.answered, 201):
            raise SystemExit(f"{target.name} is answered {answer.status}: {answer.body[:300]!r}")
        if target.path == CHAT:
            words = re.findall(rb'"content": ?("(?:[^"\\\\]|\\\\.)*")', answer.body)
            return {"name": target.name, "words": [word.decode() for word in words]}
        if not target.path.startswith("/v1/generate") or not answer.body:
            return {"name": target.name}
        lines = [line for line in answer.body.decode().split("\n") if line.startswith("data: {")]
        whole = json.loads(lines[-1][6:] if lines else answer.body)
        return {"name": target.name, "ids": whole["generated_ids"], "text": whole["text"]}

    async def send(self, seed: int, index: int) -> list[str]:
        """One mutant; returns what is wrong with how it was answered."""
        sent = mutant(self.targets, seed, index)
        if not any(name == "Authorization" for name, _ in sent.headers):
            sent.headers.append(self._token)
        over_port = index % PORT_EVERY == PORT_EVERY - 1
        if over_port:
            self.tally.over_port += 1
            try:
                status, body = await asyncio.to_thread(exchange, self._port, sent, seed, index)
                answer = Answer(status, {}, body)
            except TimeoutError as error:
                answer = Answer(0, {}, b"", error)
        else:
            answer = await call(self._app, sent.method, sent.path, sent.headers, sent.body)
        wrong = [*_judge(sent, answer, over_port, self.tally.codes), *self._errors.take()]
        self.tally.statuses[str(answer.status) if answer.status else "closed"] += 1
        self.tally.kinds[f"{sent.target.name}: {sent.how}"] += 1
        if wrong:
            body_text = base64.b64encode(sent.body[:20_000]).decode()
            row = {"index": index, "target": sent.target.name, "how": sent.how, "path": sent.path, "wrong": wrong}
            self.tally.faults.append({**row, "body": body_text, "headers": sent.headers[:-1]})
            logger.warning("%d, %s, %s, %s: %s", index, sent.target.name, sent.how, sent.path[:80], wrong)
        return wrong


def _judge(sent: Mutant, answer: Answer, over_port: bool, codes: Counter[str]) -> list[str]:
    if answer.fault is not None:
        return [f"raised {type(answer.fault).__name__}: {answer.fault}"]
    if answer.status >= 500:
        return [f"answered {answer.status}: {answer.body[:300]!r}"]
    if over_port:  # the parser's own refusals have no error object
        return []
    if not 200 <= answer.status < 500:
        return [f"answered {answer.status}"]
    if "x-request-id" not in answer.headers:
        return ["an answer without its id"]
    if answer.status >= 400 and sent.method != "HEAD" and answer.status != 499:
        try:
            error = json.loads(answer.body)["error"]
            codes[f"{answer.status} {error['code']}"] += 1
            return [] if error["message"] else ["an error without a message"]
        except (ValueError, KeyError, TypeError):
            return [f"{answer.status} without an error object: {answer.body[:200]!r}"]
    if b'"internal_error"' in answer.body and "event-stream" in answer.headers.get("content-type", ""):
        return [f"a stream with an internal error: {answer.body[-300:]!r}"]
    return []


async def fuzz(tested: Fuzz, bodies: int, seed: int, start: int = 0, progress: Any = None) -> dict[str, Any]:
    """Send the mutants of the numbers from `start` on, `bodies` of them; what came of it."""
    before, started = await tested.originals(), time.monotonic()
    every = max(1, bodies // SAMPLES)
    for index in range(start, start + bodies):
        await tested.send(seed, index)
        if index % every == 0:
            tested.tally.memory.append(resident_bytes())
            if progress is not None and index % (10 * every) == 0:
                progress(index, tested.tally)
        if len(tested.tally.faults) >= MOST_FAULTS:
            break
    after, tally = await tested.originals(), tested.tally
    return {
        "bodies": sum(tally.statuses.values()),
        "seed": seed,
        "over_a_port": tally.over_port,
        "seconds": round(time.monotonic() - started, 1),
        "statuses": dict(sorted(tally.statuses.items())),
        "codes": dict(sorted(tally.codes.items())),
        "first": start,
        "mutations": len(tally.kinds),
        "answers_unchanged": before == after,
        "faults": tally.faults,
        **_memory(tally.memory),
    }


def _memory(samples: list[int]) -> dict[str, Any]:
    """Resident bytes after the warm-up, at the end, and the most; medians of a tenth of the run each."""
    settled = samples[int(len(samples) * WARM_UP) :] or samples
    tenth = max(1, len(settled) // 10)
    first, last = statistics.median(settled[:tenth]), statistics.median(settled[-tenth:])
    return {
        "memory_after_warm_up": int(first),
        "memory_at_the_end": int(last),
        "memory_most": max(samples),
        "memory_growth": round(last / first, 4),
    }


@contextmanager
def server_under_test(model: str) -> Iterator[Fuzz]:
    """An engine, an application without a port, and one with."""
    torch.set_num_threads(1)  # the model is tiny: threads would cost more than they bring
    options = ServerOptions(model=model, device_map="cpu", dtype="float32", **LIMITS)
    errors = Errors()
    logging.getLogger().addHandler(errors)
    batch = BatchOptions(prefix_bytes=options.prefix_cache_mib * 2**20)
    engine = TransformersEngine(load_language_model(open_checkpoint(model), options), options.limits, batch)
    engine.warm_up()
    readiness = Readiness()
    readiness.set(engine)
    bases = bases_of(drawn_basis(engine.loaded.shape))
    with tempfile.TemporaryDirectory(prefix="qwen3vl-fuzz-") as scratch:
        folder = Path(scratch)
        token = add_token(folder / "tokens.toml", "fuzz")
        states = [open_state(readiness, _guarded(options, folder, name), bases) for name in ("first", "second")]
        apps = [create_app(state) for state in states]
        try:
            with serving(apps[1]) as port:
                yield Fuzz(apps[0], port, token, targets(engine.loaded.shape), errors)
        finally:
            engine.close()
            logging.getLogger().removeHandler(errors)
            for state in states:
                state.close()


def _guarded(options: ServerOptions, folder: Path, name: str) -> ServerOptions:
    files = {"tokens_file": folder / "tokens.toml", "audit_log": folder / f"{name}.jsonl"}
    return replace(options, hold_folder=folder / name, **files)  # type: ignore[arg-type]


def failed(row: dict[str, Any]) -> bool:
    """Whether a run shows a fault."""
    return bool(row["faults"]) or not row["answers_unchanged"] or row["memory_growth"] > GROWTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="reference/qwen3vl-tiny")
    parser.add_argument("--start", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--only", type=int, help="number of one mutant")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with server_under_test(arguments.model) as tested:
        if arguments.only is not None:
            wrong = asyncio.run(tested.send(arguments.seed, arguments.only))
            sent = mutant(tested.targets, arguments.seed, arguments.only)
            sys.stdout.write(f"{sent}\n{tested.tally.statuses}\n{wrong}\n")
            raise SystemExit(1 if wrong else 0)
        row = asyncio.run(fuzz(tested, arguments.bodies, arguments.seed, arguments.start, _show))
    sys.stdout.write(json.dumps(row, indent=1) + "\n")
    if arguments.out is not None:
        machine = environment()
        machine["versions"] |= {name: importlib.metadata.version(name) for name in PARSERS}
        document = {"environment": machine, "rows": [row]}
        atomic.write_bytes(arguments.out, (json.dumps(document, indent=1) + "\n").encode())
    raise SystemExit(1 if failed(row) else 0)


def _show(index: int, tally: Tally) -> None:
    sys.stderr.write(f"\r{index} bodies, {tally.memory[-1] / 2**20:,.0f} MiB, {len(tally.faults)} faults ")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
