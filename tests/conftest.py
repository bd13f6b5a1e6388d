"""What many tests share: the reference checkpoint, one bundle of it, one server, one unsplit model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# No test may reach a model hub, on any machine.
os.environ["HF_HUB_OFFLINE"] = "1"

from calibration.calibrate import CalibrationRequest, calibrate_bundle
from edge_runtime.edge import Edge, EdgeOptions, open_edge
from edge_runtime.engine import EngineOptions
from export.bundle import export_bundle
from tools.train_reference.make_calibration_data import make_calibration_data

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "reference" / "qwen3vl-tiny"
SAMPLES = ROOT / "reference" / "samples"
# The held-out questions' own sizes are fixed buckets, all but a few that the dynamic graph takes.
IMAGE_BUCKETS = "96x96,96x128,128x128,128x160,160x128,160x160,128x192"
VIDEO_BUCKETS = "8x96x96,8x96x128"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference checkpoint's folder."""
    return REFERENCE


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample pictures and clips."""
    return SAMPLES


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the reference checkpoint in fp32 and fp16; tests must not write into it."""
    out = tmp_path_factory.mktemp("bundle") / "reference"
    export_bundle(
        str(REFERENCE),
        out,
        image_buckets=IMAGE_BUCKETS,
        video_buckets=VIDEO_BUCKETS,
        precisions=("fp32", "fp16"),
    )
    return out


@pytest.fixture(scope="session")
def calibration_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about rendered pictures and clips, from seeds that are neither trained nor held out."""
    return make_calibration_data(tmp_path_factory.mktemp("calibration"), 128)


@pytest.fixture(scope="session")
def calibrated(bundle: Path, calibration_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with quantized sets beside fp32 and fp16; tests must not write into it."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("calibrated") / "reference"))
    for precision, rest in (("int8", "fp32"), ("int8", "fp16"), ("fp8", "fp16")):
        calibrate_bundle(copy, CalibrationRequest(precision, calibration_data, samples=128, rest=rest))
    return copy


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one image and one clip bucket, for tests that run all of it; tests must not write into it."""
    out = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(
        str(REFERENCE),
        out,
        image_buckets="128x128",
        video_buckets="8x96x128",
        precisions=("fp32", "fp16"),
        dynamic=False,
    )
    return out


@pytest.fixture(scope="session")
def edge(bundle: Path) -> Iterator[Edge]:
    """The device with fp32 graphs and fp32 on the wire."""
    with open_edge(bundle, EdgeOptions(wire_dtype="fp32", engine=EngineOptions(precision="fp32"))) as opened:
        yield opened


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server of the reference checkpoint, in its own process, language model in fp32."""
    from tools.server_process import running_server

    with running_server(model=str(REFERENCE), dtype="float32") as server:
        yield server.url
