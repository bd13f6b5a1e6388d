"""The device of the end-to-end bench, in a network namespace of its own; each line that it reads is a question.

python -m qwen3vl_edge.tools.dev.bench.end_to_end.device SETUP

SETUP is JSON: bundle, model and the two servers. Each line is `{"way", "picture"}`; the answer is `{"seconds",
"sent_bytes", "stages"}`, from the file on disk until the first token is back.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.ask import ask_async, build_messages
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.tools.dev.bench.line_process import Answers

QUESTION = "What is in the picture?"
LOCAL, PIXELS = "all on the device", "unsplit server"
ONE_TOKEN = Sampling(max_new_tokens=1)


class Device:
    """What is kept between two questions: engines and the local model. Each question has a connection of its own, as
    those have that come more than a few seconds apart."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._edges: dict[str, Edge] = {}
        self._model: Any = None

    async def ask(self, way: str, picture: str) -> dict[str, Any]:
        """One question, until its first token."""
        started = time.perf_counter()
        if way == LOCAL:
            result = await asyncio.to_thread(self._ask_here, picture)
        elif way == PIXELS:
            result = await self._send_picture(picture)
        else:
            result = await self._send_embeddings(way.removeprefix("split "), picture)
        return {"seconds": time.perf_counter() - started, **result}

    async def _send_embeddings(self, wire_dtype: str, picture: str) -> dict[str, Any]:
        if wire_dtype not in self._edges:
            self._edges[wire_dtype] = open_edge(self._setup["bundle"], EdgeOptions(wire_dtype=wire_dtype))
        messages = build_messages(QUESTION, [picture], [])
        answer = await ask_async(self._edges[wire_dtype], self._setup["split_server"], messages, ONE_TOKEN)
        return {"sent_bytes": answer.sent_bytes, "stages": answer.seconds}

    async def _send_picture(self, picture: str) -> dict[str, Any]:
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
            {"type": "text", "text": QUESTION},
        ]
        chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "stream": True}
        body = json.dumps(chat).encode()
        url, headers = f"{self._setup['pixel_server']}/v1/chat/completions", {"Content-Type": "application/json"}
        async with httpx.AsyncClient(timeout=600) as client:
            answer = await client.post(url, content=body, headers=headers)
        if answer.status_code != 200:
            raise RuntimeError(answer.text[:300])
        return {"sent_bytes": len(body), "stages": {}}

    def _ask_here(self, picture: str) -> dict[str, Any]:
        import torch
        from PIL import Image
        from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

        if self._model is None:
            model = Qwen3VLForConditionalGeneration.from_pretrained(self._setup["model"], dtype=torch.float32).eval()
            self._model = (model, AutoProcessor.from_pretrained(self._setup["model"]))
        model, processor = self._model
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        with Image.open(picture) as image:
            inputs = processor(text=[text], images=[image.convert("RGB")], return_tensors="pt")
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return {"sent_bytes": 0, "stages": {}}


async def serve(setup: dict[str, Any], answers: Answers) -> None:
    """Answer lines until there are no more."""
    device = Device(setup)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        try:
            result = await device.ask(job["way"], job["picture"])
        except Exception as error:
            answers.refuse(error)
        else:
            answers.reply(result)


def main() -> None:
    asyncio.run(serve(json.loads(sys.argv[1]), Answers()))


if __name__ == "__main__":
    main()
