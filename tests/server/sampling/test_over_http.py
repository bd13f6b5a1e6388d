"""Penalties and biases at the server's doors: `/v1/generate`, binary and JSON, and `/v1/chat/completions`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import user
from tests.support.http_api.generate import post
from tests.support.http_api.tools import TOOLS
from tests.support.server_checkpoint import make_case, make_checkpoint
from tests.support.wire_bodies import body_of, with_document

CHAT, GENERATE = "/v1/chat/completions", "/v1/generate"
TEXT = replace(make_case("text only").request, model_hash=None)  # another template, another hash
IDS = TEXT.input_ids.tolist()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model whose answers do not end, of 320 tokens."""
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path_factory.mktemp("sampling") / "random"))
    (folder / "chat_template.jinja").write_text(TOOLS)
    with (
        running_server(threads=1, model=str(folder)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def test_generate_in_both_forms(client: httpx.Client) -> None:
    """Of two tokens far ahead of all, one leads until the penalty of what was said outweighs it."""
    sampling = Sampling(max_new_tokens=40, logit_bias=((7, 100.0), (9, 80.0)))
    assert set(post(client, replace(TEXT, sampling=sampling)).json()["generated_ids"]) == {7}
    sampling = replace(sampling, frequency_penalty=2.0)
    answer = post(client, replace(TEXT, sampling=sampling)).json()["generated_ids"]
    assert (answer[0], set(answer)) == (7, {7, 9})
    as_json = client.post(GENERATE, json={"input_ids": IDS, **sampling.to_dict()}).json()
    assert as_json["generated_ids"] == answer


def test_chat_and_its_evidence(client: httpx.Client) -> None:
    def tokens(**options: Any) -> tuple[list[str], Any]:
        made = client.post(CHAT, json={"messages": [user("x")], "max_tokens": 12, "logprobs": True, **options}).json()
        content = made["choices"][0]["logprobs"]["content"]
        return [item["token"] for item in content], made["qwen3vl_edge"].get("penalties")

    plain, none = tokens(presence_penalty=0, frequency_penalty=0, logit_bias={})
    assert none is None
    biased, evidence = tokens(logit_bias={"7": 100})
    assert (len(set(biased)), evidence) == (1, {"logit_bias": {"7": 100.0}})
    both, evidence = tokens(logit_bias={"7": 99, "9": 99}, frequency_penalty=2, presence_penalty=0.5)
    assert (evidence["frequency_penalty"], evidence["presence_penalty"]) == (2, 0.5)
    assert biased[0] in both
    assert len(set(both)) == 2
    assert plain != biased


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, {"presence_penalty": 2.1}, 400, "presence_penalty"),
    (CHAT, {"frequency_penalty": "much"}, 400, "frequency_penalty"),
    (CHAT, {"logit_bias": {"x": 1}}, 400, "logit_bias"),
    (CHAT, {"logit_bias": {"7": -101}}, 400, "logit_bias.7"),
    (CHAT, {"logit_bias": {"320": 1}}, 400, "logit_bias.320"),
    (CHAT, {"logit_bias": dict.fromkeys(range(301), 1)}, 400, "logit_bias"),
    (CHAT, {"repetition_penalty": 101}, 400, "repetition_penalty"),
    (GENERATE, {"frequency_penalty": -2.5}, 400, "frequency_penalty"),
    (GENERATE, {"presence_penalty": "1"}, 422, "presence_penalty"),
    (GENERATE, {"logit_bias": "7"}, 422, "logit_bias"),
    (GENERATE, {"logit_bias": {"7": 101}}, 400, "logit_bias.7"),
    (GENERATE, {"logit_bias": {"320": 1}}, 400, "logit_bias.320"),
]


@pytest.mark.parametrize(("path", "changes", "status", "field"), REFUSED)
def test_refusals_name_the_fault(
    client: httpx.Client, path: str, changes: dict[str, Any], status: int, field: str
) -> None:
    body = {"messages": [user("x")]} if path == CHAT else {"input_ids": IDS}
    answer = client.post(path, json={**body, **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field), answer.text


def test_the_binary_form_names_the_wire_s_field(client: httpx.Client) -> None:
    refused = post(client, replace(TEXT, sampling=Sampling(logit_bias=((320, 1.0),))))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "sampling.logit_bias.320")
    body = with_document(body_of(TEXT), sampling={"presence_penalty": 3})
    refused = post(client, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "sampling.presence_penalty")


def test_the_same_key_with_another_penalty_is_refused(client: httpx.Client) -> None:
    key = {"Idempotency-Key": "penalty"}
    body = {"input_ids": IDS, "max_new_tokens": 2}
    assert client.post(GENERATE, json=body, headers=key).status_code == 200
    assert client.post(GENERATE, json={**body, "presence_penalty": 1}, headers=key).status_code == 409
    assert client.post(GENERATE, json={**body, "presence_penalty": 0, "logit_bias": {}}, headers=key).status_code == 200
