"""A basis fitted to a bundle, through real processes: fewer bytes than int4, the same words, refused where unknown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3vl_edge.calibration.wire_basis import BasisRequest, fit_basis
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.packing import WIRE_DTYPES
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Split
from qwen3vl_edge.tools.server_process import running_server
from tests.support.packed_answers import COLOUR, QUESTIONS, asked_twice_and_as_a_job
from tests.support.run_cli import run_here

SHARES = {"basis-int8": 0.31, "basis-int4": 0.24}  # narrow rows: scales and header weigh more


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, few_buckets: Path, calibration_data: Path) -> Path:
    """The bundle with a basis."""
    copy = Path(shutil.copytree(few_buckets, tmp_path_factory.mktemp("fitted") / "reference"))
    found = run_here("fit-basis", copy, "--data", calibration_data, "--samples", 128, "--json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    record = open_bundle(copy).manifest.basis
    assert record is not None
    assert told["ranks"] == list(record.ranks)
    assert told["sha256"][:8] in record.path
    assert record.samples == 128
    return copy


@pytest.fixture(scope="module")
def server_with_basis(fitted: Path, reference: Path) -> Iterator[str]:
    record = open_bundle(fitted, verify=False).manifest.basis
    assert record is not None
    with running_server(model=str(reference), dtype="float32", wire_basis=str(fitted / record.path)) as server:
        yield server.url


def test_what_is_kept_is_what_was_asked_for(fitted: Path) -> None:
    """On samples that were held out, and on questions that the data does not have."""
    manifest = open_bundle(fitted).manifest
    record = manifest.basis
    assert record is not None
    assert min(record.mean_cosines) >= 0.999
    assert max(record.ranks) < manifest.vision.out_hidden_size
    options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype="basis-int8")
    plain_options = replace(options, wire_dtype="fp32")
    cosines: list[list[float]] = [[] for _ in record.ranks]
    with open_edge(fitted, options) as edge, open_edge(fitted, plain_options) as exact:
        for question in heldout_questions(24):
            pairs = zip(
                edge.encode(question.messages, Sampling()).request.media,
                exact.encode(question.messages, Sampling()).request.media,
                strict=True,
            )
            for item, other in pairs:
                for tensor, (one, two) in enumerate(zip(item.arrays, other.arrays, strict=True)):
                    cosines[tensor] += [distance(a[None], b[None]).cosine for a, b in zip(one, two, strict=True)]
    for measured, told in zip(cosines, record.mean_cosines, strict=True):
        assert np.mean(measured) == pytest.approx(told, abs=6e-4)


def test_a_daemon_says_whether_its_server_holds_the_basis(
    tmp_path: Path, fitted: Path, server_url: str, server_with_basis: str
) -> None:
    for server, word in ((server_url, "does not hold the bundle's basis"), (server_with_basis, "ready")):
        with running_daemon(tmp_path, fitted, server, 'wire_dtype = "basis-int8"\n') as daemon:
            told = httpx.get(f"{daemon.url}/readyz", timeout=10).json()["server"]
        assert word in told
        assert (told == "ready") == (server == server_with_basis)


@pytest.mark.parametrize(("name", "changed"), [("basis-int8", 0), ("basis-int4", 2)])
def test_answers_hold(fitted: Path, halves: tuple[Split, list[str]], name: str, changed: int) -> None:
    split, expected = halves
    with open_edge(fitted, EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype=name)) as edge:
        answers = answer_all_split(split.with_edge(edge), heldout_questions(QUESTIONS))
    assert sum(one != other for one, other in zip(answers, expected, strict=True)) <= changed


@pytest.mark.parametrize("name", SHARES)
def test_the_daemon_sends_less_and_says_so(
    name: str,
    tmp_path: Path,
    fitted: Path,
    server_with_basis: str,
    samples: Path,
    plain: tuple[str, dict[str, Any]],
) -> None:
    text, told = plain
    found, packed = asked_twice_and_as_a_job(name, tmp_path, fitted, server_with_basis, samples)
    if name == "basis-int8":
        assert found == text
    assert packed["sent_bytes"] < SHARES[name] * told["sent_bytes"]


def test_a_server_that_does_not_hold_it_says_so(
    tmp_path: Path, fitted: Path, server_url: str, server_with_basis: str, samples: Path
) -> None:
    assert httpx.get(f"{server_url}/readyz").json()["wire_bases"] == []
    basis = httpx.get(f"{server_with_basis}/readyz").json()["wire_bases"]
    assert len(basis) == 1
    picture = samples / "colour.png"
    arguments = ("ask", COLOUR, "--bundle", fitted, "--image", picture, "--wire-dtype", "basis-int8")
    found = run_here(*arguments, "--server", server_url)
    assert found.returncode == 2
    assert "a basis that the server does not have" in found.stderr
    assert "--wire-basis" in found.stderr
    found = run_here(*arguments, "--server", server_with_basis, "--json")
    assert found.returncode == 0, found.stderr


def test_parity_takes_it(fitted: Path, reference: Path, samples: Path, tmp_path: Path) -> None:
    shutil.copy(samples / "colour.png", tmp_path)
    found = run_here(
        "parity", "--bundle", fitted, "--model", reference, "--images", tmp_path, "--wire-dtype", "basis-int8",
        "--precision", "fp32", "--json",
    )  # fmt: skip
    document = json.loads(found.stdout)
    assert document["wire_dtype"] == "basis-int8", found.stderr
    assert {row["form"] for row in document["wire"] if row["passed"]} == set(WIRE_DTYPES)
    assert not [row for row in document["wire"] if not row["passed"]]


def test_a_bundle_without_one_says_how_to_fit_it(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"no basis for embeddings.*qwen3vl-edge fit-basis"):
        open_edge(bundle, EdgeOptions(wire_dtype="basis-int8"))


def test_inspect_tells_of_it(fitted: Path) -> None:
    found = run_here("inspect", fitted)
    assert "basis for embeddings" in found.stdout
    assert json.loads(run_here("inspect", fitted, "--json").stdout)["basis"]["samples"] == 128


def test_a_second_fit_takes_the_place_of_the_first(fitted: Path, calibration_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fitted, tmp_path / "reference"))
    before = open_bundle(copy).manifest
    result = fit_basis(copy, BasisRequest(calibration_data, samples=24, rank=64))
    manifest = open_bundle(copy).manifest
    assert manifest.basis == result.record
    assert result.record.ranks == (64,) * len(result.record.ranks)
    assert [file.name for file in (copy / "wire").iterdir()] == [Path(result.record.path).name]
    assert manifest.precisions == before.precisions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "1"], "too few samples"),
        (["--cosine", "1.5"], "bad target cosine"),
        (["--rank", "33"], "bad rank"),
        (["--rank", "192"], "do not lie in fewer directions"),
        (["--cosine", "0.9999999"], "do not lie in fewer directions"),
        (["--precision", "int4"], "no such precision"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_nothing_changed(
    fitted: Path, calibration_data: Path, options: list[str], message: str
) -> None:
    before = (fitted / "manifest.json").read_bytes()
    found = run_here("fit-basis", fitted, "--data", calibration_data, "--samples", "6", *options)
    assert (found.returncode, found.stderr.strip().count("\n")) == (2, 0), found.stderr
    assert message in found.stderr
    assert (fitted / "manifest.json").read_bytes() == before


def test_a_wrong_file_ends_the_server_before_it_loads(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    path.write_bytes(b"not one")
    found = run_here("server", "--model", reference, "--wire-basis", path)
    assert found.returncode == 2
    assert "is not a basis file" in found.stderr
