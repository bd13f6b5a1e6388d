"""A bundle of a full-size tower with random weights, in fp32 and int8, for the encoder bench.

python -m tools.bench.make_bundle --size 2B --out bundles/bench-2B [--buckets 448x448]

writes bundles/bench-2B/random-2B, a checkpoint, and bundles/bench-2B/bundle. Prompts and pictures go through the
reference checkpoint's processor: a checkpoint with random weights has no tokenizer.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from calibration.calibrate import CalibrationRequest, calibrate_bundle
from contract.checkpoint import open_checkpoint
from export.bundle import export_bundle
from tools.parity.pictures import draw_picture
from tools.random_checkpoint import TOWERS, encoder_checkpoint

REFERENCE = Path("reference/qwen3vl-tiny")
PICTURES = 8


def make_bundle(size: str, out: Path, buckets: str) -> Path:
    """Write the model and its calibrated bundle; the bundle's folder comes back."""
    model = encoder_checkpoint(out / f"random-{size}", torch.float32, **TOWERS[size]).path
    config = (model / "config.json").read_bytes()
    for file in open_checkpoint(str(REFERENCE)).processor_files():
        shutil.copyfile(file, model / file.name)
    (model / "config.json").write_bytes(config)
    export_bundle(str(model), out / "bundle", image_buckets=buckets)
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    for index in range(PICTURES):
        draw_picture(index, 448, 448).save(pictures / f"{index}.png")
    calibrate_bundle(out / "bundle", CalibrationRequest("int8", pictures, samples=PICTURES))
    return out / "bundle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TOWERS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--buckets", default="448x448")
    arguments = parser.parse_args()
    make_bundle(arguments.size, arguments.out, arguments.buckets)


if __name__ == "__main__":
    main()
