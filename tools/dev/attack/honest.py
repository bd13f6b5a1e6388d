"""An honest client beside an attack, in a process of its own: asks `/healthz` all the time, and one question.

python -m qwen3vl_edge.tools.dev.attack.honest URL: runs until its standard input ends, then prints an `Experience`.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.01
PATIENCE_SECONDS = 120.0
_QUESTION = {"messages": [{"role": "user", "content": "What is this?"}], "max_tokens": 4, "temperature": 0}
_AGAIN = (429, 503)  # with Retry-After, which OpenAI's clients heed


@dataclass
class Experience:
    """What the client met.

    Attributes:
        waits: seconds of each `/healthz`; a failed one counts with the seconds until it failed.
        failures: how often `/healthz` was not answered 200.
        answers: texts of the answers to the question, which is asked again and again.
        answer_waits: seconds until each of them, refusals included.
    """

    waits: list[float] = field(default_factory=list)
    failures: int = 0
    answers: list[str] = field(default_factory=list)
    answer_waits: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Seconds within which so large a share of `/healthz` was answered."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def honest_client(url: str) -> Iterator[Callable[[], Experience]]:
    """A client that has been answered once when the block begins; the yielded function ends it."""
    command = [sys.executable, "-m", "qwen3vl_edge.tools.dev.attack.honest", url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "begun\n":
            raise RuntimeError("the honest client was not answered before the attack")
        yield lambda: Experience(**json.loads(process.communicate()[0]))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    url = sys.argv[1]
    experience, over = Experience(), threading.Event()
    ask_once(url, experience)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    steps = (_probe_once, ask_once)
    threads = [threading.Thread(target=_repeat, args=(step, url, experience, over)) for step in steps]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(asdict(experience)))


def _repeat(step: Callable[[str, Experience], None], url: str, experience: Experience, over: threading.Event) -> None:
    while True:
        step(url, experience)
        if over.wait(PAUSE_SECONDS):
            return


def _probe_once(url: str, experience: Experience) -> None:
    started = time.perf_counter()
    try:
        healthy = _request(url, "GET", "/healthz")[0] == 200
    except OSError:
        healthy = False
    experience.waits.append(time.perf_counter() - started)
    experience.failures += not healthy


def ask_once(url: str, experience: Experience) -> None:
    """Ask the question until it is answered, as OpenAI's clients do.

    Raises:
        RuntimeError: it was refused for good.
    """
    started = time.perf_counter()
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            status, content = _request(url, "POST", "/v1/chat/completions", json.dumps(_QUESTION).encode())
        except (OSError, http.client.HTTPException):  # no connection, or none that lasts: tried again
            status, content = 503, b""
        if status not in _AGAIN or time.monotonic() > ends:
            break
        time.sleep(0.5)
    if status != 200:
        raise RuntimeError(f"the honest client was answered {status}: {content[:300]!r}")
    experience.answers.append(json.loads(content)["choices"][0]["message"]["content"])
    experience.answer_waits.append(time.perf_counter() - started)


def _request(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


if __name__ == "__main__":
    main()
