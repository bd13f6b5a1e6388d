"""The server keeps to its OpenAPI document: requests that fit it and requests that do not, made from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.server_checkpoint import make_case
from tests.support.wire_bodies import body_of

OPERATIONS = (
    "POST /v1/chat/completions",
    "POST /v1/generate",
    "DELETE /v1/generate",
    "PUT /v1/embeddings/{name}",
    "GET /v1/embeddings/{name}",
    "GET /v1/models",
    "GET /metrics",
    "GET /readyz",
    "GET /healthz",
)
EXAMPLES = int(os.environ.get("QWEN3VL_TEST_EXAMPLES", "20"))
# What fits the document may still be refused: ids and embeddings must fit the model too.
MAY_BE_REFUSED = {"positive_data_acceptance"}


@pytest.fixture(scope="module")
def server(reference: Path) -> Iterator[ServerProcess]:
    with running_server(model=str(reference), max_new_tokens=4) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> Any:
    good = body_of(make_case("one image").request)
    cut = st.integers(0, len(good)).map(lambda end: good[:end])
    schemathesis.openapi.media_type(CONTENT_TYPE, st.one_of(st.binary(max_size=300), cut))
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_route_is_in_the_document(document: Any) -> None:
    assert {found.ok().label for found in document.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS[:5]),
        # Of an opaque body and a path nothing can be of a wrong type.
        *((label, GenerationMode.NEGATIVE) for label in OPERATIONS[:3]),
    ],
)
def test_requests_made_from_the_document_are_answered_by_it(document: Any, label: str, mode: GenerationMode) -> None:
    load_all_checks()
    checks = [check for check in CHECKS.get_all() if check.__name__ not in MAY_BE_REFUSED]
    operation = next(found.ok() for found in document.get_all_operations() if found.ok().label == label)
    statuses: set[int] = set()

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answered(case: Any) -> None:
        response = case.call(timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=checks)

    answered()
    assert statuses
    assert max(statuses) < 500


@pytest.mark.parametrize("label", OPERATIONS[5:])
def test_what_takes_no_body_answers_as_described(document: Any, label: str) -> None:
    operation = next(found.ok() for found in document.get_all_operations() if found.ok().label == label)
    operation.Case().call_and_validate()
