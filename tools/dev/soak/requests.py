"""One request of a soak, of one of six kinds, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import EventSource

from qwen3vl_edge.tools.dev.soak.prompts import SoakPrompt

KINDS = {"chat": 40, "stream": 30, "job": 12, "encode": 8, "leave": 6, "bad": 4}
REFUSALS = frozenset({503, 504, 507})
MAX_TOKENS = 6


@dataclass
class Tally:
    """Outcomes by kind; `wrong` and `lost` must stay empty.

    Attributes:
        answered: right answers. refused: by status and code. left: clients that went by themselves.
        retries_after_429: times that a client was answered 429, waited for Retry-After and sent again.
        wrong: another answer than the quiet daemon's. lost: neither answer nor reason.
        jobs: id to prompt name, of accepted jobs.
    """

    answered: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    retries_after_429: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)

    def right(self, kind: str) -> None:
        self.answered[kind] = self.answered.get(kind, 0) + 1

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def body_of(prompt: SoakPrompt, **more: Any) -> bytes:
    """A chat request's JSON."""
    return json.dumps({"messages": prompt.messages, "max_tokens": MAX_TOKENS, **more}).encode()


class Asker:
    """Sends requests to one daemon and holds the answers against the quiet ones."""

    def __init__(self, url: str, http: httpx.AsyncClient, expected: dict[str, str], rng: random.Random) -> None:
        self.tally = Tally()
        self._url, self._http, self._expected, self._rng = url, http, expected, rng

    async def one(self, prompt: SoakPrompt) -> None:
        """A request of a random kind; its outcome goes into the tally."""
        kind = self._rng.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            await getattr(self, f"_{kind}")(prompt)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.tally.lost.append(f"{kind} {prompt.name}: {type(error).__name__} {error}")

    async def quiet(self, prompt: SoakPrompt) -> str:
        """The answer of an undisturbed daemon."""
        answer = await self._post("/v1/chat/completions", body_of(prompt))
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    async def _chat(self, prompt: SoakPrompt) -> None:
        answer = await self._post("/v1/chat/completions", body_of(prompt))
        if self._accepted("chat", answer):
            self._compare("chat", prompt.name, answer.json()["choices"][0]["message"]["content"])

    async def _stream(self, prompt: SoakPrompt) -> None:
        async with self._streaming(prompt) as answer:
            if answer.status_code != 200:
                await answer.aread()
                if answer.status_code == 429:
                    await self._come_back(answer)
                    return await self._stream(prompt)
                self._accepted("stream", answer)
                return
            pieces, error, done = [], None, False
            async for event in EventSource(answer).aiter_sse():
                if event.data == "[DONE]":
                    done = True
                elif event.data:
                    chunk = event.json()
                    error = chunk.get("error") or error
                    pieces += [choice["delta"].get("content") or "" for choice in chunk.get("choices", ())]
            if error is not None:
                self.tally.refuse(f"stream {error['code']}")
            elif done:
                self._compare("stream", prompt.name, "".join(pieces))
            else:
                self.tally.lost.append(f"stream {prompt.name}: ended without [DONE]")

    async def _leave(self, prompt: SoakPrompt) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stream_to_nowhere(prompt), self._rng.uniform(0.01, 0.4))
        self.tally.left += 1

    async def _stream_to_nowhere(self, prompt: SoakPrompt) -> None:
        async with self._streaming(prompt) as answer:
            async for _ in answer.aiter_raw():
                pass

    async def _job(self, prompt: SoakPrompt) -> None:
        answer = await self._post("/v1/jobs", body_of(prompt))
        if self._accepted("job", answer, 202):
            self.tally.jobs[answer.json()["id"]] = prompt.name

    async def _encode(self, prompt: SoakPrompt) -> None:
        answer = await self._post("/v1/encode", body_of(prompt))
        if self._accepted("encode", answer):
            self.tally.right("encode")

    async def _bad(self, prompt: SoakPrompt) -> None:
        answer = await self._post("/v1/chat/completions", body_of(prompt, temperature=9))
        if answer.status_code == 400 and answer.json()["error"]["param"] == "temperature":
            self.tally.right("bad")
        elif answer.status_code not in REFUSALS:
            self.tally.lost.append(f"bad: {answer.status_code} {answer.text[:200]}")
        else:
            self._accepted("bad", answer)

    async def collect_jobs(self) -> None:
        """Every accepted job must have ended, with the right answer or a reason."""
        for name, prompt in self.tally.jobs.items():
            job = (await self._http.get(f"{self._url}/v1/jobs/{name}")).json()
            while job.get("status") in ("waiting", "running"):
                await asyncio.sleep(0.2)
                job = (await self._http.get(f"{self._url}/v1/jobs/{name}")).json()
            if job.get("status") == "done":
                self._compare("job", prompt, job["answer"]["choices"][0]["message"]["content"])
            elif job.get("status") in ("failed", "expired"):
                self.tally.refuse(f"job {job['error']['code']}")
            else:
                self.tally.lost.append(f"job {name}: {job}")

    async def _post(self, path: str, body: bytes) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        while True:
            answer = await self._http.post(f"{self._url}{path}", content=body, headers=headers)
            if answer.status_code != 429:
                return answer
            await self._come_back(answer)

    async def _come_back(self, answer: httpx.Response) -> None:
        self.tally.retries_after_429 += 1
        await asyncio.sleep(int(answer.headers["retry-after"]) * self._rng.uniform(0.5, 1.0))

    def _streaming(self, prompt: SoakPrompt) -> Any:
        body = body_of(prompt, stream=True)
        headers = {"Content-Type": "application/json"}
        return self._http.stream("POST", f"{self._url}/v1/chat/completions", content=body, headers=headers)

    def _accepted(self, kind: str, answer: httpx.Response, status: int = 200) -> bool:
        if answer.status_code == status:
            return True
        if answer.status_code in REFUSALS:
            error = answer.json()["error"]
            self.tally.refuse(f"{kind} {answer.status_code} {error['code']}")
        else:
            self.tally.lost.append(f"{kind}: {answer.status_code} {answer.text[:300]}")
        return False

    def _compare(self, kind: str, name: str, text: str) -> None:
        if text == self._expected[name]:
            self.tally.right(kind)
        else:
            self.tally.wrong.append(f"{kind} {name}: {text!r}, not {self._expected[name]!r}")
