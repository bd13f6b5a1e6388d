"""What goes out to a foreign server, read as vLLM reads it; and what becomes of its answers and refusals."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.formats.torch_file import torch_bytes
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.http_api.chat import image, post_chat, user

KEY = "a-key-that-must-not-be-logged"


class ForeignServer(ThreadingHTTPServer):
    """Streams the same answer to every chat, or the errors it was told to give first; keeps what it received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.errors: list[tuple[int, dict[str, Any]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.prompt_tokens = 7

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: ForeignServer

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "foreign"}]})

    def do_POST(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.errors:
            self._send(*self.server.errors.pop(0))
            return
        usage = {"prompt_tokens": self.server.prompt_tokens, "completion_tokens": 2}
        chunks: list[Any] = [{"choices": [{"delta": {"content": text}}]} for text in ("", "The", " end")]
        chunks += [{"choices": [{"delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.wfile.write("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n")

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def foreign() -> Iterator[ForeignServer]:
    server = ForeignServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def daemon(foreign: ForeignServer, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("foreign")
    settings = 'precision = "fp32"\nserver_kind = "openai"\n'
    with running_daemon(folder, bundle, foreign.url, settings, QWEN3VL_EDGE_SERVER_API_KEY=KEY) as running:
        yield running


def ask(daemon: DaemonProcess, *parts: dict[str, Any], **options: Any) -> httpx.Response:
    return post_chat(daemon.url, {"messages": [user(*parts, "What?")], **options})


def read_tensor(text: str) -> torch.Tensor:
    tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
    assert isinstance(tensor, torch.Tensor)
    return tensor


@pytest.mark.parametrize("names", [("colour",), ("shape", "number-wide", "count"), ()])
def test_each_image_is_a_part_with_its_tensors(
    daemon: DaemonProcess, foreign: ForeignServer, bundle: Path, samples: Path, names: tuple[str, ...]
) -> None:
    paths = [samples / f"{name}.png" for name in names]
    answer = ask(daemon, *(image(path) for path in paths))
    assert answer.status_code == 200, answer.text
    content = foreign.bodies[-1]["messages"][0]["content"]
    assert content[-1] == {"type": "text", "text": "What?"}
    assert [part["type"] for part in content[:-1]] == ["image_embeds"] * len(names)
    messages = [{"role": "user", "content": [{"type": "image", "image": str(path)} for path in paths]}]
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"))) as edge:
        media = edge.encode(messages).request.media
    for part, item in zip(content, media, strict=False):
        found = read_tensor(part["image_embeds"]["image_embeds"]).numpy()
        np.testing.assert_array_equal(found, np.concatenate([item.embeds, *item.deepstack], axis=1))
        assert read_tensor(part["image_embeds"]["image_grid_thw"]).tolist() == item.grid.as_list()
    assert foreign.keys[-1] == f"Bearer {KEY}"
    assert KEY not in daemon.log.read_text()


def test_answers_and_what_is_not_proven(daemon: DaemonProcess, foreign: ForeignServer) -> None:
    whole = ask(daemon).json()
    assert whole["choices"][0]["message"]["content"] == "The end"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 2
    server = whole["qwen3vl_edge"]["server"]
    assert (server["kind"], server["model"], server["model_proven"]) == ("openai", "foreign", False)
    assert not server["prompt_agrees"]
    assert "prompt tokens, this device" in daemon.log.read_text()
    foreign.prompt_tokens = whole["usage"]["prompt_tokens"]
    assert ask(daemon).json()["qwen3vl_edge"]["server"]["prompt_agrees"]
    streamed = ask(daemon, stream=True).text
    assert '"content": " end"' in streamed
    assert '"model_proven": false' in streamed
    ready = httpx.get(f"{daemon.url}/readyz").json()
    assert ready["server"] == "ready"
    assert ready["server_evidence"]["model_proven"] is False


def test_sampling_is_named_as_vllm_names_it(daemon: DaemonProcess, foreign: ForeignServer) -> None:
    ask(daemon)
    assert foreign.bodies[-1]["temperature"] == 0
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 5}
    options |= {"presence_penalty": -1.5, "frequency_penalty": 0.5, "logit_bias": {"7": 4.5}}
    ask(daemon, **options, max_tokens=4, stop="never")
    sent = foreign.bodies[-1]
    assert {name: sent[name] for name in options} == options
    assert (sent["max_tokens"], sent["stop"]) == (4, ["never"])


def test_refusals_are_passed_on_and_a_full_server_is_asked_again(daemon: DaemonProcess, foreign: ForeignServer) -> None:
    foreign.errors = [(400, {"error": {"message": "no such thing", "code": 400}})]
    refused = ask(daemon)
    assert refused.status_code == 400
    assert "no such thing" in refused.json()["error"]["message"]
    before = len(foreign.bodies)
    foreign.errors = [(429, {"error": {"message": "later"}})]
    assert ask(daemon).status_code == 200
    assert len(foreign.bodies) == before + 2


def test_clips_are_refused_before_they_are_encoded(daemon: DaemonProcess, foreign: ForeignServer) -> None:
    before = len(foreign.bodies)
    answer = ask(daemon, {"type": "video_url", "video_url": {"url": "http://192.0.2.1/none.mp4"}})
    assert answer.status_code == 400
    assert "qwen3vl" in answer.json()["error"]["message"]
    assert len(foreign.bodies) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (0, 3), ()])
def test_the_container_is_read_by_torch(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    found = torch.load(io.BytesIO(torch_bytes(array)), weights_only=True).numpy()
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(WireError, match="float64"):
        torch_bytes(np.zeros(2))
