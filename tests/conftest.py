"""What many tests share: the reference checkpoint, one bundle of it, one server, one unsplit model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.paths import ROOT

# No test may reach a model hub, on any machine.
os.environ["HF_HUB_OFFLINE"] = "1"

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools import server_process
from qwen3vl_edge.tools.dev.train_reference.make_calibration_data import make_calibration_data
from tests.support.warm_start import ForkServer

REFERENCE = ROOT / "reference" / "qwen3vl-tiny"
SAMPLES = ROOT / "reference" / "samples"
# The held-out questions' own sizes are fixed buckets, all but a few that the dynamic graph takes.
IMAGE_BUCKETS = "96x96,96x128,128x128,128x160,160x128,160x160,128x192"
VIDEO_BUCKETS = "8x96x96,8x96x128"


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary files of the code under test go when pytest's own go."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("scratch"))
    # Each run of the tests proves engines anew.
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def warm_start(scratch: None) -> Iterator[ForkServer]:
    """Servers and daemons are forks of a process that has imported torch already."""
    server = ForkServer()
    before, server_process.start_process = server_process.start_process, server.start
    yield server
    server_process.start_process = before
    server.close()


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference checkpoint's folder."""
    return REFERENCE


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample pictures and clips."""
    return SAMPLES


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first test process to need it makes; `make` gets a folder to make it in.

    With pytest-xdist each worker has a session of its own; their temporary folders lie in one.
    """
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(shared / f"{name}.lock"):
        done, half = shared / f"{name}-done", shared / f"{name}-half"
        if not done.exists():
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            make(half)
            half.rename(done)
    return done


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the reference checkpoint in fp32 and fp16; tests must not write into it."""

    def make(folder: Path) -> None:
        export_bundle(
            str(REFERENCE),
            folder / "reference",
            image_buckets=IMAGE_BUCKETS,
            video_buckets=VIDEO_BUCKETS,
            precisions=("fp32", "fp16"),
        )

    return made_once(tmp_path_factory, "bundle", make) / "reference"


@pytest.fixture(scope="session")
def few_buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three image buckets and a clip's, for tests that build or quantize all; none may write into it."""

    def make(folder: Path) -> None:
        export_bundle(
            str(REFERENCE),
            folder / "reference",
            image_buckets="128x128,128x160,128x192",
            video_buckets="8x96x96",
            precisions=("fp32", "fp16"),
        )

    return made_once(tmp_path_factory, "few-buckets", make) / "reference"


@pytest.fixture(scope="session")
def calibration_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about rendered pictures and clips, from seeds that are neither trained nor held out."""
    folder = made_once(tmp_path_factory, "calibration", lambda folder: make_calibration_data(folder, 128))
    return folder / "messages.jsonl"


@pytest.fixture(scope="session")
def calibrated(few_buckets: Path, calibration_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with quantized sets beside fp32 and fp16; tests must not write into it."""

    def make(folder: Path) -> None:
        copy = Path(shutil.copytree(few_buckets, folder / "reference"))
        for precision, rest in (("int8", "fp32"), ("int8", "fp16"), ("fp8", "fp16")):
            calibrate_bundle(
                copy, CalibrationRequest(precision, calibration_data, samples=128, rest=rest, auto_exclude=0.0)
            )

    return made_once(tmp_path_factory, "calibrated", make) / "reference"


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one image and one clip bucket, for tests that run all of it; tests must not write into it."""

    def make(folder: Path) -> None:
        export_bundle(
            str(REFERENCE),
            folder / "small",
            image_buckets="128x128",
            video_buckets="8x96x128",
            precisions=("fp32", "fp16"),
            dynamic=False,
        )

    return made_once(tmp_path_factory, "small-bundle", make) / "small"


@pytest.fixture(scope="session")
def edge(bundle: Path) -> Iterator[Edge]:
    """The device with fp32 graphs and fp32 on the wire."""
    with open_edge(bundle, EdgeOptions(wire_dtype="fp32", backend_options=BackendOptions(precision="fp32"))) as opened:
        yield opened


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server of the reference checkpoint, in its own process, language model in fp32."""
    from qwen3vl_edge.tools.server_process import running_server

    with running_server(model=str(REFERENCE), dtype="float32") as server:
        yield server.url
