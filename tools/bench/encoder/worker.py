"""One candidate in a process of its own, driven line by line: what it loads, holds and takes is its own.

python -m tools.bench.encoder.worker NAME SETTING

SETTING is JSON (tools/bench/encoder/process.py writes it). It prints a line of JSON when it is loaded and has run once,
then one for each line that it reads (`run`), and ends with its input. Anything that goes wrong before is printed as
`{"refused": reason}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from contract.bundle import open_bundle
from contract.grid import Grid
from tools.bench.encoder.candidate import Peer, Setting
from tools.bench.encoder.peers import all_peers, pixels_of
from tools.bench.environment import peak_memory

PREPARE = "prepare"


def main() -> None:
    name, document = sys.argv[1], json.loads(sys.argv[2])
    # The libraries below print what they like; the driver reads lines of JSON.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        setting = _setting(document)
        peers = all_peers(open_bundle(setting.bundle), setting.model is not None)
        peer = next(item for item in peers if item.name == name)
        if document["job"] == PREPARE:
            assert peer.prepare is not None
            peer.prepare(setting)
            print(json.dumps({}), file=answers)
        else:
            _serve(peer, setting, Path(document["outputs"]), answers)
    except Exception as error:  # a peer may fail in any way; the bench goes on and says so
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        print(json.dumps({"refused": reason[:300]}), file=answers)


def _setting(document: dict[str, Any]) -> Setting:
    bundle = Path(document["bundle"])
    model = document["model"]
    return Setting(
        bundle=bundle,
        model=None if model is None else Path(model),
        vision=open_bundle(bundle).manifest.vision,
        grid=Grid.parse(document["grid"]),
        threads=document["threads"],
        prepared=Path(document["prepared"]),
    )


def _serve(peer: Peer, setting: Setting, outputs_file: Path, answers: Any) -> None:
    pixels = pixels_of(setting.grid, setting.vision.patch_values)
    started = time.perf_counter()
    candidate = peer.load(setting)
    loaded = time.perf_counter()
    outputs = candidate.run(pixels)  # graphs are loaded, compiled and laid out by the first picture
    first = time.perf_counter()
    arrays = {str(index): np.asarray(array, dtype=np.float32) for index, array in enumerate(outputs)}
    np.savez(outputs_file, **arrays)  # type: ignore[arg-type]
    print(json.dumps({"load_seconds": loaded - started, "first_seconds": first - loaded}), file=answers)
    for _ in sys.stdin:
        started = time.perf_counter()
        candidate.run(pixels)
        seconds = time.perf_counter() - started
        device = None if candidate.device_seconds is None else candidate.device_seconds(pixels)
        print(json.dumps({"seconds": seconds, "device_seconds": device, "peak_bytes": peak_memory()}), file=answers)


if __name__ == "__main__":
    main()
