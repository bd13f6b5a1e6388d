"""A build, a calibration and a basis for one bundle at once, each a process of its own: the bundle has all three."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from qwen3vl_edge.contract.bundle.edit import locked
from qwen3vl_edge.contract.bundle.open import open_bundle
from tests.support.waiting import until


def test_nothing_is_lost(small_bundle: Path, calibration_data: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    data = ["--data", str(calibration_data), "--samples", "8"]
    commands = [
        ["build", str(bundle), "--target", "desktop-ada", "--layout", "per-bucket"],
        ["calibrate", str(bundle), *data],
        ["fit-basis", str(bundle), *data, "--rank", "32"],
    ]
    with locked(bundle):
        running = [
            subprocess.Popen([sys.executable, "-m", "qwen3vl_edge", *command], stderr=subprocess.PIPE, text=True)
            for command in commands
        ]

        def all_wait() -> bool:
            """Each has written its files and comes to replace the manifest."""
            for process in running:
                assert process.poll() is None, process.communicate()[1]
            patterns = ("engines/desktop-ada/fp16/1x8x8-*.plan", "int8-*/weights.bin", "wire/basis-*.safetensors")
            return all(list(bundle.glob(pattern)) for pattern in patterns)

        until(all_wait, within=300)
        assert open_bundle(bundle).manifest == open_bundle(small_bundle).manifest  # a reader does not wait
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    manifest = open_bundle(bundle).manifest  # hashes every file
    assert [(engine.target, engine.precision) for engine in manifest.engines] == [("desktop-ada", "fp16")]
    assert [item.precision for item in manifest.precisions] == ["fp32", "fp16", "int8"]
    assert manifest.basis is not None
