"""One candidate in a process of its own, driven line by line: what it loads, holds and takes is its own.

python -m qwen3vl_edge.tools.dev.bench.encoder.worker NAME SETTING

SETTING is JSON (written by encoder/process.py). It answers when it is loaded and has run once, then to each
line that it receives, and ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.machine.environment import peak_memory
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Peer, Setting
from qwen3vl_edge.tools.dev.bench.encoder.peers import all_peers, pixels_of
from qwen3vl_edge.tools.dev.bench.line_process import Answers

PREPARE = "prepare"


def main() -> None:
    name, document = sys.argv[1], json.loads(sys.argv[2])
    answers = Answers()
    try:
        bundle = open_bundle(document["bundle"])
        setting = _setting(document, bundle)
        peer = next(item for item in all_peers(bundle, setting.model is not None) if item.name == name)
        if document["job"] == PREPARE:
            assert peer.prepare is not None
            peer.prepare(setting)
            answers.reply({})
        else:
            _serve(peer, setting, Path(document["outputs"]), answers)
    except Exception as error:  # a peer may fail in any way; the bench goes on and says so
        answers.refuse(error)


def _setting(document: dict[str, Any], bundle: Bundle) -> Setting:
    model = document["model"]
    return Setting(
        bundle=Path(document["bundle"]),
        model=None if model is None else Path(model),
        vision=bundle.manifest.vision,
        grid=Grid.parse(document["grid"]),
        threads=document["threads"],
        prepared=Path(document["prepared"]),
    )


def _serve(peer: Peer, setting: Setting, outputs_file: Path, answers: Answers) -> None:
    pixels = pixels_of(setting.grid, setting.vision.patch_values)
    started = time.perf_counter()
    candidate = peer.load(setting)
    loaded = time.perf_counter()
    outputs = candidate.run(pixels)  # graphs are loaded, compiled and laid out by the first picture
    first = time.perf_counter()
    arrays = {str(index): np.asarray(array, dtype=np.float32) for index, array in enumerate(outputs)}
    np.savez(outputs_file, **arrays)  # type: ignore[arg-type]
    answers.reply({"load_seconds": loaded - started, "first_seconds": first - loaded})
    for _ in sys.stdin:
        started = time.perf_counter()
        candidate.run(pixels)
        seconds = time.perf_counter() - started
        device = None if candidate.device_seconds is None else candidate.device_seconds(pixels)
        answers.reply({"seconds": seconds, "device_seconds": device, "peak_bytes": peak_memory()})


if __name__ == "__main__":
    main()
