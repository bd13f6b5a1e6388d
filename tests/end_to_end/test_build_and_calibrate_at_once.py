"""A build, a calibration and a basis for one bundle at once, each a process of its own: the bundle has all three."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from qwen3vl_edge.contract.bundle.edit import locked
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.tools import server_process
from tests.support.waiting import until


def test_nothing_is_lost(small_bundle: Path, calibration_data: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    data = ["--data", str(calibration_data), "--samples", "8"]
    commands = [
        ["build", str(bundle), "--target", "desktop-ada", "--layout", "per-bucket"],
        ["calibrate", str(bundle), *data],
        ["fit-basis", str(bundle), *data, "--rank", "32"],
    ]
    with ExitStack() as stack, locked(bundle):
        logs = [stack.enter_context((tmp_path / command[0]).open("w")) for command in commands]
        running = [
            server_process.start_process([sys.executable, "-m", "qwen3vl_edge", *command], stdout=log, stderr=log)
            for command, log in zip(commands, logs, strict=True)
        ]

        def all_wait() -> bool:
            """Each has written its files and comes to replace the manifest."""
            for process, log in zip(running, logs, strict=True):
                assert process.poll() is None, Path(log.name).read_text()
            patterns = ("engines/desktop-ada/fp16/1x8x8-*.plan", "int8-*/weights.bin", "wire/basis-*.safetensors")
            return all(list(bundle.glob(pattern)) for pattern in patterns)

        until(all_wait, within=300)
        assert open_bundle(bundle).manifest == open_bundle(small_bundle).manifest  # a reader does not wait
    for process, log in zip(running, logs, strict=True):
        assert process.wait(300) == 0, Path(log.name).read_text()
    manifest = open_bundle(bundle).manifest  # hashes every file
    assert [(engine.target, engine.precision) for engine in manifest.engines] == [("desktop-ada", "fp16")]
    assert [item.precision for item in manifest.precisions] == ["fp32", "fp16", "int8"]
    assert manifest.basis is not None
