"""The floors of a bench that was run, from peaks measured again on the same machine.

python -m qwen3vl_edge.tools.dev.bench.encoder.peaks docs/reports/benchmarks/encoder.json --bundle BUNDLE

A peak that was taken while the machine was busy is too low, and a floor worked out with it too high. The higher of both
peaks is kept. Times and ratios stay as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.tools.dev.bench.encoder.run import floor_of
from qwen3vl_edge.tools.dev.bench.machine_peak import machine_peaks
from qwen3vl_edge.tools.dev.bench.measurement import rewrite_document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle that was measured")
    arguments = parser.parse_args()
    document = json.loads(arguments.document.read_text(encoding="utf-8"))
    check_machine(document["environment"])
    peaks = {threads: machine_peaks(int(threads)) for threads in document["peaks"]}
    rewrite_document(arguments.document, with_peaks(document, peaks, open_bundle(arguments.bundle).manifest.vision))


def check_machine(then: dict[str, Any]) -> None:
    """Raises: InputError: this is another CPU, or another number of cores."""
    now = environment()
    for name in ("cpu", "cores", "gpu"):
        if then[name] != now[name]:
            raise InputError("the document is of another machine", field=name, expected=repr(then[name]), got=now[name])


def with_peaks(document: dict[str, Any], peaks: dict[str, dict[str, float]], vision: VisionSpec) -> dict[str, Any]:
    """The document with the higher of its peaks and these, by threads and type, and the floors that they give."""
    higher = {
        threads: {name: max(value, peaks[threads].get(name, 0.0)) for name, value in known.items()}
        for threads, known in document["peaks"].items()
    }
    rows = [
        {**row, "floor_seconds": floor_of(row["dtype"], vision, Grid.parse(row["bucket"]), higher[str(row["threads"])])}
        for row in document["rows"]
    ]
    return {**document, "peaks": higher, "rows": rows}


if __name__ == "__main__":
    main()
