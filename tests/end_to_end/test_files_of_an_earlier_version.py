"""A bundle, a request body and a spool written by an earlier release: today's code reads each as it was meant."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from qwen_vl_utils import vision_process

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.pixels.policy import qwen_vl_utils_policy
from qwen3vl_edge.contract.wire.codec import decode_request
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from tests.support.paths import ROOT
from tests.support.run_cli import run_here

WRITTEN = ROOT / "tests" / "support" / "files_of_an_earlier_version"
BODY = (WRITTEN / "request.bin").read_bytes()


def test_the_bundle_opens() -> None:
    manifest = open_bundle(WRITTEN / "bundle").manifest  # hashes every file
    assert manifest.buckets()
    assert manifest.has_dynamic()


def test_the_bundle_keeps_the_limits_that_it_had(tmp_path: Path) -> None:
    """qwen-vl-utils' defaults, and those of `vision_defaults.json` where a checkpoint had one."""
    assert open_bundle(WRITTEN / "bundle").pixels == qwen_vl_utils_policy(32)
    shown = run_here("inspect", WRITTEN / "bundle").stdout
    assert "pixel policy qwen-vl-utils (of before bundles recorded it)" in " ".join(shown.split())
    copy = Path(shutil.copytree(WRITTEN / "bundle", tmp_path / "bundle"))
    limits = {"image": {"min_pixels": 5000, "max_pixels": 90_000}, "video": {"min_pixels": 4096, "max_pixels": 65_536}}
    file = copy / "processor" / "vision_defaults.json"
    file.write_text(json.dumps(limits))
    pixels = open_bundle(copy).pixels
    for size in ((64, 64), (100, 300), (1000, 900)):
        expected = vision_process.smart_resize(*size, 32, min_pixels=5000, max_pixels=90_000)
        assert pixels.picture_size(*size) == expected
        assert pixels.clip_size(8, *size) == vision_process.smart_resize(*size, 32, min_pixels=4096, max_pixels=65_536)
    file.write_text('{"image": {"least": 3}}')
    with pytest.raises(BundleError, match=r"vision_defaults\.json cannot be read"):
        _ = open_bundle(copy).pixels


def test_the_bundle_encodes_the_same_request() -> None:
    expected = decode_request(BODY)
    picture = {"type": "image", "image": str(WRITTEN / "picture.png")}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What colour is it?"}]}]
    backend_options = BackendOptions(precision="fp16", threads=1)
    options = EdgeOptions(backend_options=backend_options, wire_dtype="fp32", preprocess="lean")
    with open_edge(WRITTEN / "bundle", options) as edge:
        request = edge.encode(messages).request
    assert request.model_hash == expected.model_hash
    assert request.input_ids.tolist() == expected.input_ids.tolist()
    assert [item.grid for item in request.media] == [item.grid for item in expected.media]
    for item, other in zip(request.media, expected.media, strict=True):
        for array, written in zip(item.arrays, other.arrays, strict=True):
            assert array.shape == written.shape
            assert distance(array, written).cosine >= 1 - 1e-6  # other CPUs round differently


def test_the_spool_has_its_jobs(tmp_path: Path) -> None:
    path = Path(shutil.copy(WRITTEN / "spool.sqlite3", tmp_path / "spool.sqlite3"))
    spool = Spool(path, 2**30, 100)
    try:
        done = asyncio.run(spool.get("a" * 32))
        assert done is not None
        assert (done.status, done.answer) == ("done", {"text": "red"})
        waiting = asyncio.run(spool.claim())
        assert waiting is not None
        assert (waiting.job.id, waiting.body) == ("b" * 32, BODY)
        assert asyncio.run(spool.claim()) is None
    finally:
        spool.close()
