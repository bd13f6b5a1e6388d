"""A device's dump: made, judged without the device's engine, refused when it is damaged, read by polygraphy."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.parity.dump.dump_format import read_dump
from qwen3vl_edge.tools.parity.dump.identity import set_identity
from qwen3vl_edge.tools.parity.pictures import draw_picture, pictures_of
from tests.support.encoders.compared import compare_encoders
from tests.support.encoders.faulty_bundle import with_weight_changed
from tests.support.run_cli import Finished, run_here

POLYGRAPHY = [str(Path(sys.executable).parent / "polygraphy")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures under `pictures/`."""
    found = tmp_path_factory.mktemp("dump")
    (found / "pictures").mkdir()
    for seed in range(2):
        draw_picture(seed).save(found / "pictures" / f"{seed}.png")
    return found


@pytest.fixture(scope="module")
def dumped(small_bundle: Path, folder: Path) -> Path:
    """An fp16 dump with layers, and polygraphy's files beside it."""
    out = folder / "dump.npz"
    done = run_here(
        "edge", "dump", "--bundle", small_bundle, "--images", folder / "pictures", "--precision", "fp16",
        "--layers", "--out", out, "--polygraphy", folder / "polygraphy", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backend"] == "onnxruntime"
    return out


def judge(dump: Path, bundle: Path, reference: Path, *more: object) -> Finished:
    return run_here("parity", "--dump", dump, "--bundle", bundle, "--model", reference, *more)


def test_a_dump_gives_the_figures_of_the_engine_itself(
    dumped: Path, folder: Path, small_bundle: Path, reference: Path
) -> None:
    done = judge(dumped, small_bundle, reference, "--json", "--report", folder / "page.html", "--against", small_bundle)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["backend"], report["precision"], report["prompts"]) == ("onnxruntime", "fp16", [])
    options = EdgeOptions(backend_options=BackendOptions(precision="fp16"))
    with open_edge(small_bundle, options) as edge:
        rows = compare_encoders(edge, PytorchBackend(open_checkpoint(str(reference))), pictures_of(folder / "pictures"))
    assert [row["distance"] for row in report["encoder"]] == [vars(row.distance) for row in rows]
    assert report["skipped"]["set fp32"] == "a dump holds one set"
    page = (folder / "page.html").read_text()
    assert "dump of onnxruntime, fp16" in page
    assert "A dump holds no answers" in page
    assert "not measured" in judge(dumped, small_bundle, reference).stdout


def test_pixels_travel_as_bytes_and_a_later_engine_does_not_change_the_bundle(
    dumped: Path, small_bundle: Path, tmp_path: Path, reference: Path
) -> None:
    dump = read_dump(dumped)
    assert dump.array(0, "pixels").dtype == np.uint8
    assert not dump.has(0, "pixel_values")
    manifest = open_bundle(small_bundle).manifest
    assert dump.meta.set_identity == set_identity(manifest, "fp16") != set_identity(manifest, "fp32")
    built = tmp_path / "built"  # as `build` leaves it: one more file, and a manifest that names it
    shutil.copytree(small_bundle, built)
    (built / "engines").mkdir()
    (built / "engines" / "a.plan").write_bytes(b"plan")
    document = json.loads((built / MANIFEST_NAME).read_text())
    digest = "c90e1ee7ee6f3b9a9d1e5c0f3f7a7e0a8e0d3a2a7e5d3e6c6a1a0c6f1b1f1f1f"
    document["files"].append({"path": "engines/a.plan", "bytes": 4, "sha256": digest})
    (built / MANIFEST_NAME).write_text(json.dumps(document))
    assert set_identity(open_bundle(built, verify=False).manifest, "fp16") == dump.meta.set_identity


def test_a_dump_with_layers_can_be_bisected(small_bundle: Path, reference: Path, folder: Path, tmp_path: Path) -> None:
    """A device whose weights are bad: its dump names the half of the block, the graph the linear."""
    faulty = with_weight_changed(small_bundle, tmp_path / "faulty", "blocks.2.mlp.linear_fc2.bias", (7,), 3.0)
    out = tmp_path / "dump.npz"
    arguments = ("--images", folder / "pictures", "--precision", "fp32", "--layers", "--out", out)
    assert run_here("dump", "--bundle", faulty, *arguments).returncode == 0
    found = json.loads(judge(out, faulty, reference, "--bisect", "--json").stdout)
    assert found["first_layer"] == "blocks.2.mlp.residual"
    assert found["first"]["first"]["channel"] == 7
    without = tmp_path / "without.npz"
    assert run_here("dump", "--bundle", small_bundle, "--out", without).returncode == 0
    done = judge(without, small_bundle, reference, "--bisect")
    assert done.returncode == 2
    assert "a dump made with --layers" in done.stderr


def test_a_dump_of_another_bundle_is_refused(
    dumped: Path, folder: Path, small_bundle: Path, reference: Path, tmp_path: Path
) -> None:
    other = with_weight_changed(small_bundle, tmp_path / "other", "merger.norm.bias", (0,), 1.0)
    assert judge(dumped, other, reference).returncode == 0  # its fp16 set is the one that was dumped
    single = tmp_path / "fp32.npz"
    arguments = ("--precision", "fp32", "--images", folder / "pictures", "--out", single)
    assert run_here("dump", "--bundle", small_bundle, *arguments).returncode == 0
    refused(judge(single, other, reference), "made with another bundle")
    document = json.loads((other / MANIFEST_NAME).read_text())
    document["model"]["model_hash"] = "00" * 32
    (other / MANIFEST_NAME).write_text(json.dumps(document))
    refused(judge(dumped, other, reference), "made with another model")


def refused(done: Finished, words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("qwen3vl-edge: ")
    assert words in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_dump_is_refused(
    dumped: Path, small_bundle: Path, reference: Path, tmp_path: Path, share: float
) -> None:
    content = dumped.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: int(share * len(content))])
    refused(judge(tmp_path / "cut.npz", small_bundle, reference), "truncated, corrupt or no dump")


def test_a_flipped_bit_is_noticed_wherever_it_is(
    dumped: Path, small_bundle: Path, reference: Path, tmp_path: Path
) -> None:
    """In the arrays the checksum of the member tells; around them the archive does not open."""
    content = bytearray(dumped.read_bytes())
    for place in np.linspace(200, len(content) - 200, 8).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (tmp_path / "bad.npz").write_bytes(damaged)
        refused(judge(tmp_path / "bad.npz", small_bundle, reference), "dump")


class Exploding:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def with_array(dumped: Path, out: Path, name: str, array: NDArray[Any] | None) -> Path:
    """A copy of a dump with one member replaced, or left out for None."""
    with zipfile.ZipFile(dumped) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.namelist():
            if member != f"{name}.npy":
                target.writestr(member, source.read(member))
        if array is not None:
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=True)
            target.writestr(f"{name}.npy", stream.getvalue())
    return out


META = {"format": "qwen3vl-edge dump", "version": 1}


def meta_of(document: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)


BAD: list[tuple[str, NDArray[Any] | None, str]] = [
    ("meta", np.array([Exploding()], dtype=object), "truncated, corrupt or no dump"),
    ("0/embeds", np.array([Exploding()], dtype=object), "lacks a readable 0/embeds"),
    ("meta", None, "truncated, corrupt or no dump"),
    ("meta", meta_of([1]), "is no qwen3vl-edge dump of version 1"),
    ("meta", meta_of({**META, "version": 2}), "is no qwen3vl-edge dump of version 1"),
    ("meta", meta_of(META), "has bad meta data"),
    ("0/embeds", None, "lacks a readable 0/embeds"),
    ("1/embeds", np.zeros((3, 3), np.float16), "1/embeds has another shape or dtype"),
    ("0/pixels", np.zeros((2, 64, 64, 3), np.uint8), "0/pixels has another shape or dtype"),
    ("0/deepstack.1", np.zeros((16, 192), np.complex64), "0/deepstack.1 has another shape or dtype"),
]


@pytest.mark.parametrize(("name", "array", "words"), BAD, ids=[f"{name} {words}" for name, _, words in BAD])
def test_a_dump_with_a_bad_member_is_refused(
    dumped: Path, small_bundle: Path, reference: Path, tmp_path: Path, name: str, array: NDArray[Any] | None, words: str
) -> None:
    bad = with_array(dumped, tmp_path / "bad.npz", name, array)
    refused(judge(bad, small_bundle, reference), words)
    assert not Path("exploded").exists()


def test_other_files_are_refused(dumped: Path, small_bundle: Path, reference: Path, tmp_path: Path) -> None:
    refused(judge(tmp_path / "nowhere.npz", small_bundle, reference), "no such dump")
    refused(judge(dumped, small_bundle, reference, "--images", tmp_path), "a dump has its own pictures")
    refused(judge(reference / "config.json", small_bundle, reference), "truncated, corrupt or no dump")
    with zipfile.ZipFile(dumped) as source, zipfile.ZipFile(tmp_path / "small.npz", "w", zipfile.ZIP_DEFLATED) as out:
        for member in source.namelist():
            out.writestr(member, source.read(member))
    refused(judge(tmp_path / "small.npz", small_bundle, reference), "has a compressed member")


def test_a_dump_that_fails_leaves_nothing(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    draw_picture(0).save(tmp_path / "pictures" / "good.png")
    out = tmp_path / "out" / "dump.npz"
    backend = ("--backend", "tensorrt_rtx", "--layers")
    assert run_here("dump", "--bundle", small_bundle, "--out", out, *backend).returncode == 2
    assert not out.parent.exists()
    (tmp_path / "file").write_text("")
    done = run_here("dump", "--bundle", small_bundle, "--out", tmp_path / "file" / "dump.npz")
    refused(done, "cannot be written")


def test_polygraphy_opens_a_bundles_graph_and_our_dump(dumped: Path, small_bundle: Path, folder: Path) -> None:
    """Its own tool on the graph as it lies in the bundle, its outputs held against the dump's by its comparator."""
    graph = small_bundle / "fp16" / "1x8x8.onnx"
    inspected = subprocess.run([*POLYGRAPHY, "inspect", "model", graph], capture_output=True, text=True, check=False)
    assert inspected.returncode == 0, inspected.stdout + inspected.stderr
    assert "pixel_values [dtype=float32, shape=(64, 1536)]" in inspected.stdout
    files = [folder / "polygraphy" / f"1x8x8.{kind}.json" for kind in ("inputs", "outputs")]
    assert all(file.is_file() for file in files)
    compared = subprocess.run(
        [
            *POLYGRAPHY, "run", graph, "--onnxrt", "--load-inputs", files[0], "--load-outputs", files[1],
            "--onnx-outputs", "embeds", "deepstack.0", "blocks.3.mlp.residual", "--rtol", "0", "--atol", "2e-2",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout[-3000:] + compared.stderr
    assert "PASSED" in compared.stdout
    assert "blocks.3.mlp.residual" in compared.stdout


def test_polygraphys_comparator_notices_a_difference(dumped: Path, small_bundle: Path, folder: Path) -> None:
    """As a library: its OnnxrtRunner against our dump, as it is and with one value moved."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, RunResults, SimpleCompareFunc
    from polygraphy.json import load_json

    feeds = load_json(str(folder / "polygraphy" / "4x6x8.inputs.json"))
    ours = RunResults.load(str(folder / "polygraphy" / "4x6x8.outputs.json"))
    session = SessionFromOnnx(str(small_bundle / "fp16" / "4x6x8.onnx"), providers=["cpu"])
    found = Comparator.run([OnnxrtRunner(session, name="polygraphy")], data_loader=feeds)
    compare = SimpleCompareFunc(rtol=0, atol=2e-2)
    names = ["embeds", "deepstack.0", "deepstack.1", "deepstack.2"]

    def held(results: Any) -> bool:
        pair = RunResults([*found.items(), *results.items()])
        return bool(Comparator.compare_accuracy(pair, compare_func=compare))

    assert [list(ours["onnxruntime-fp16"][0])[: len(names)], len(ours["onnxruntime-fp16"])] == [names, 2]
    assert held(ours)
    moved = ours["onnxruntime-fp16"][1]["embeds"].copy()
    moved[5, 5] += 1.0
    ours["onnxruntime-fp16"][1]["embeds"] = moved
    assert not held(ours)
