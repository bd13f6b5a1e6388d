"""The reference checkpoint's bundle as the packing bench wants it: with a basis, fitted to pictures of their own.

python -m qwen3vl_edge.tools.dev.bench.make_reference_bundle bundles/bench-reference
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from qwen3vl_edge.calibration.wire_basis import BasisRequest, fit_basis
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.train_reference.make_calibration_data import make_calibration_data

REFERENCE = Path("reference/qwen3vl-tiny")
SAMPLES = 256
# The sizes of its questions' pictures: scaled up to a larger bucket, they would be what it was never trained on.
IMAGE_BUCKETS = "96x96,96x128,128x128,128x160,160x128,160x160,128x192"
VIDEO_BUCKETS = "8x96x96,8x96x128"


def make_reference_bundle(out: Path) -> None:
    """Write the bundle, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="qwen3vl-basis-data-") as data, atomic.new_folder(out) as unfinished:
        export_bundle(str(REFERENCE), unfinished, image_buckets=IMAGE_BUCKETS, video_buckets=VIDEO_BUCKETS)
        fit_basis(unfinished, BasisRequest(make_calibration_data(Path(data), SAMPLES), SAMPLES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    make_reference_bundle(parser.parse_args().out)


if __name__ == "__main__":
    main()
