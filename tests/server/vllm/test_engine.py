"""`qwen3vl-edge server --engine vllm`, a real process in vLLM's environment, two workers: the unsplit model's answers.

One server for all of it, which takes two minutes or so to start; the last test kills its engine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessorList

from qwen3vl_edge.contract.bundle.open import open_model_of
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.parity.end_to_end import Unsplit
from qwen3vl_edge.tools.server_process import ServerProcess
from tests.support.engine.one_row_sampler import AnswerPenalties, LogitBias
from tests.support.http_api.client import stream
from tests.support.vllm.engine_server import PARALLEL, running_vllm_engine
from tests.support.vllm.stock_server import needs_vllm
from tests.support.waiting import until
from tests.support.wire_bodies import body_of

TOKENS = 24
LONG = Sampling(max_new_tokens=1000, do_sample=True, temperature=2.0, top_k=0, seed=5)
pytestmark = [
    pytest.mark.vllm,
    needs_vllm,
]
Conversation = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Of a folder with an index that an earlier save left: transformers reads the single file, and so must vLLM."""
    folder = tmp_path_factory.mktemp("model") / reference.name
    shutil.copytree(reference, folder)
    stale = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    with running_vllm_engine(folder, tmp_path_factory.mktemp("vllm-engine")) as running:
        yield running


@pytest.fixture(scope="module")
def unsplit(edge: Edge, reference: Path) -> Unsplit:
    return Unsplit(open_model_of(edge.bundle, str(reference), patterns=("*",)))


@pytest.fixture(scope="module")
def questions(samples: Path) -> dict[str, Conversation]:
    """The sample questions, pictures and clips; turns, several pictures and none."""
    found: dict[str, Conversation] = {}
    for line in (samples / "questions.jsonl").read_text().splitlines():
        item = json.loads(line)
        for message in item["messages"]:
            for part in message["content"]:
                if part["type"] in ("image", "video"):
                    part[part["type"]] = str(samples / part[part["type"]])
        found[item["id"]] = item["messages"]
    said = {"role": "assistant", "content": [{"type": "text", "text": "The cross is yellow."}]}
    pictures = [{"type": "image", "image": str(samples / f"{name}.png")} for name in ("where", "shape", "number")]
    ask = {"type": "text", "text": "How many shapes do you see?"}
    found["turns"] = [*found["colour"], said, *found["shape"]]
    found["three pictures"] = [{"role": "user", "content": [*pictures, ask]}]
    found["picture and clip"] = [{"role": "user", "content": [pictures[0], *found["motion"][0]["content"]]}]
    found["text"] = [{"role": "user", "content": [ask]}]
    return found


def expected_ids(unsplit: Unsplit, edge: Edge, messages: Conversation, **changes: Any) -> list[int]:
    inputs = unsplit.inputs(messages, edge.policy)
    ids = unsplit.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, **changes)[0]
    return list(ids[inputs["input_ids"].shape[1] :].tolist())


def request_of(edge: Edge, messages: Conversation, sampling: Sampling | None = None) -> GenerateRequest:
    return edge.encode(messages, sampling or Sampling(max_new_tokens=TOKENS)).request


def post(server: ServerProcess, body: bytes, path: str = "/v1/generate", address: str = "") -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=address) if address else None
    with httpx.Client(transport=transport, timeout=300) as client:
        return client.post(f"{server.url}{path}", content=body, headers={"Content-Type": CONTENT_TYPE})


def answer(server: ServerProcess, request: GenerateRequest, address: str = "") -> dict[str, Any]:
    found = post(server, body_of(request), address=address)
    assert found.status_code == 200, found.text
    return dict(found.json())


def figure(server: ServerProcess, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"qwen3vl_edge_{name}"))


def test_it_says_what_it_runs_and_holds_no_encoder(server: ServerProcess) -> None:
    ready = httpx.get(f"{server.url}/readyz").json()
    assert (ready["engine"], ready["vllm"], ready["dtype"]) == ("vllm", "0.32.0", "float32")
    assert (ready["tensor_parallel"], ready["pipeline_parallel"]) == PARALLEL
    assert ready["workers"] == PARALLEL[0] * PARALLEL[1]
    assert ready["vision_parameters_loaded"] == 0
    assert ready["vision_parameters_not_loaded"] > 1_000_000
    assert 503 in server.ready_statuses


def test_answers_are_the_unsplit_models(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    kinds = set()
    for name, messages in questions.items():
        request = request_of(edge, messages)
        found = answer(server, request)
        assert found["generated_ids"] == expected_ids(unsplit, edge, messages), name
        decoded = edge.processor.hf.tokenizer.decode(found["generated_ids"], skip_special_tokens=True)
        assert found["text"] == decoded, name
        assert found["usage"]["prompt_tokens"] == request.input_ids.size
        kinds.add(tuple(item.kind for item in request.media))
    assert {(), ("image",), ("image", "image"), ("image",) * 3, ("video",), ("image", "video")} <= kinds


def test_half_precision_on_the_wire(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    for name in ("colour", "pair-1", "motion"):
        request = request_of(edge, questions[name])
        media = [
            replace(
                item,
                hash=None,
                embeds=item.embeds.astype(np.float16),
                deepstack=tuple(level.astype(np.float16) for level in item.deepstack),
            )
            for item in request.media
        ]
        found = answer(server, replace(request, media=tuple(media)))
        assert found["generated_ids"] == expected_ids(unsplit, edge, questions[name]), name


def test_streamed_text_joins_to_the_answer(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    request = replace(request_of(edge, questions["pair-2"]), stream=True)
    seen = list(stream(server.url, encode_request(request)))
    final = seen[-1].final
    assert final is not None
    assert len(seen) > 4
    assert "".join(event.text for event in seen) == final["text"]
    assert final["generated_ids"] == expected_ids(unsplit, edge, questions["pair-2"])


def test_sixteen_at_once_each_get_their_own_answer(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    names = (list(questions) * 2)[:16]
    requests = [request_of(edge, questions[name]) for name in names]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda request: answer(server, request)["generated_ids"], requests))
    assert found == [expected_ids(unsplit, edge, questions[name]) for name in names]


def test_one_prompt_about_two_pictures_of_one_size(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation], tmp_path: Path
) -> None:
    """The token ids are the same, so only the embeddings' names tell the two apart in what vLLM keeps."""
    red, green, blue = Image.open(questions["colour"][0]["content"][0]["image"]).convert("RGB").split()
    Image.merge("RGB", (blue, red, green)).save(tmp_path / "turned.png")
    turned = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "turned.png")}]}]
    turned[0]["content"].append(questions["colour"][0]["content"][1])
    one, other = request_of(edge, questions["colour"]), request_of(edge, turned)
    assert one.input_ids.tolist() == other.input_ids.tolist()
    expected = [expected_ids(unsplit, edge, messages) for messages in (questions["colour"], turned)]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [answer(server, request)["generated_ids"] for request in (one, other)] == expected


def test_a_prompt_is_reused_by_its_own_client_alone(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    request = request_of(edge, questions["three pictures"])
    expected = expected_ids(unsplit, edge, questions["three pictures"])
    found = [answer(server, request, address) for address in ("127.0.0.2", "127.0.0.2", "127.0.0.3")]
    assert [item["generated_ids"] for item in found] == [expected] * 3
    assert [item["usage"]["reused_tokens"] > 0 for item in found] == [False, True, False]


def test_a_seed_gives_one_answer_whatever_runs_beside(
    server: ServerProcess, edge: Edge, questions: dict[str, Conversation]
) -> None:
    def ask(seed: int) -> list[int]:
        sampling = replace(LONG, max_new_tokens=TOKENS, seed=seed)
        return list(answer(server, request_of(edge, questions["text"], sampling))["generated_ids"])

    alone = ask(3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [3, 4, 5, 6, 3, 7, 8, 9]))
    assert found[0] == found[4] == alone
    assert len({tuple(ids) for ids in found}) > 4


def test_repetition_penalty_is_transformers(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    sampling = Sampling(max_new_tokens=TOKENS, repetition_penalty=1.6)
    for name in ("count", "pair-1"):
        found = answer(server, request_of(edge, questions[name], sampling))
        assert found["generated_ids"] == expected_ids(unsplit, edge, questions[name], repetition_penalty=1.6), name


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (-0.5, 1.5)])
def test_penalties_and_biases_are_applied(
    server: ServerProcess,
    edge: Edge,
    unsplit: Unsplit,
    questions: dict[str, Conversation],
    presence: float,
    frequency: float,
) -> None:
    """As the embedded engine's tests hold it to the same processors."""
    for name in ("count", "pair-1"):
        plain = answer(server, request_of(edge, questions[name]))["generated_ids"]
        sampling = Sampling(
            max_new_tokens=TOKENS,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias=tuple(sorted((dict.fromkeys(range(70, 75), 20.0) | {plain[-1]: -100.0}).items())),
        )
        request = request_of(edge, questions[name], sampling)
        processors = [LogitBias(sampling.logit_bias), AnswerPenalties(sampling, request.input_ids.size)]
        found = answer(server, request)["generated_ids"]
        expected = expected_ids(unsplit, edge, questions[name], logits_processor=LogitsProcessorList(processors))
        assert found == expected != plain, name


def test_log_probabilities_are_the_unsplit_models(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    found = post(server, body_of(request_of(edge, questions["number"])), "/test/logprobs/3").json()
    inputs = unsplit.inputs(questions["number"], edge.policy)
    made = unsplit.model.generate(
        **inputs, do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True
    )
    assert [token["id"] for token in found] == made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    for token, logits in zip(found, made.logits, strict=True):
        expected = logits[0].float().log_softmax(dim=-1)
        assert token["logprob"] == pytest.approx(float(expected[token["id"]]), abs=1e-3)
        values, ids = torch.topk(expected, 3)
        assert [place[0] for place in token["top"]] == ids.tolist()
        assert [place[1] for place in token["top"]] == pytest.approx(values.tolist(), abs=1e-3)


def test_what_does_not_fit_is_refused(server: ServerProcess, edge: Edge, questions: dict[str, Conversation]) -> None:
    picture, clip = (request_of(edge, questions[name]) for name in ("colour", "motion"))
    marker = clip.input_ids.copy()
    pads = np.flatnonzero(marker == np.bincount(marker).argmax())  # the clip's placeholders are most of its prompt
    marker[pads[0] - 1] = marker[0]
    lied = replace(picture, media=(replace(picture.media[0], hash="0" * 64),))
    hot = replace(picture, sampling=Sampling(do_sample=True, temperature=5.0))
    cold = replace(picture, sampling=Sampling(do_sample=True, temperature=0.005))
    for request, status, said in (
        (replace(picture, model_hash="0" * 64), 409, "another model"),
        (lied, 400, "hash"),
        (hot, 400, "temperature"),
        (cold, 400, "temperature"),
        (replace(clip, input_ids=marker), 400, "<|vision_start|>"),
        (replace(picture, input_ids=np.tile(picture.input_ids[:1], 2048), media=()), 413, "context"),
    ):
        refused = post(server, body_of(request))
        assert (refused.status_code, said in refused.text) == (status, True), refused.text
    wrong = replace(picture.media[0], embeds=picture.media[0].embeds[:, :-1])
    assert post(server, body_of(replace(picture, media=(wrong,)))).status_code == 400


def test_who_leaves_is_cancelled_and_the_queue_is_bounded(
    server: ServerProcess, edge: Edge, unsplit: Unsplit, questions: dict[str, Conversation]
) -> None:
    request = replace(request_of(edge, questions["text"], LONG), stream=True)
    body, headers = body_of(request), {"Content-Type": CONTENT_TYPE}
    before = figure(server, 'generations_total{finish_reason="cancelled"}')

    def begin_and_leave(_: int) -> int:
        with httpx.stream("POST", f"{server.url}/v1/generate", content=body, headers=headers, timeout=60) as response:
            if response.status_code == 200:
                next(response.iter_lines())
                time.sleep(2)
            return response.status_code

    with ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(begin_and_leave, range(40)))
    assert set(statuses) == {200, 429}
    until(lambda: figure(server, "running") + figure(server, "queue_depth") == 0)
    assert figure(server, 'generations_total{finish_reason="cancelled"}') > before
    assert answer(server, request_of(edge, questions["colour"]))["generated_ids"] == expected_ids(
        unsplit, edge, questions["colour"]
    )


def test_a_dead_engine_is_not_ready(server: ServerProcess, edge: Edge, questions: dict[str, Conversation]) -> None:
    """Last: it ends the server's use."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=True
    )
    engines = [int(line.split()[0]) for line in listed.stdout.splitlines() if "tracker" not in line]
    assert engines, listed.stdout
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    until(lambda: httpx.get(f"{server.url}/readyz").status_code != 200)
    assert "died" in httpx.get(f"{server.url}/readyz").json()["error"]["message"]
    refused = post(server, body_of(request_of(edge, questions["text"])))
    assert (refused.status_code, "died" in refused.text) == (503, True)
    assert httpx.get(f"{server.url}/healthz").status_code == 200
