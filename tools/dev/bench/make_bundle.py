"""A bundle of a full-size tower with random weights, in fp32 and int8, for the encoder bench.

python -m qwen3vl_edge.tools.dev.bench.make_bundle --size 2B --out bundles/bench-2B [--buckets 448x448]

writes bundles/bench-2B/random-2B, a checkpoint, and bundles/bench-2B/bundle. Prompts and pictures go through the
reference checkpoint's processor: a checkpoint with random weights has no tokenizer. `--depth 4` keeps so many of the
tower's layers: what grows with the tokens grows as it does in all of them. `--no-int8` leaves the calibration out, and
`--precisions fp32,fp16` writes the tower in fp16 too.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS, encoder_checkpoint
from qwen3vl_edge.tools.parity.pictures import draw_picture

REFERENCE = Path("reference/qwen3vl-tiny")
PICTURES = 8


def random_model(folder: Path, tower: Mapping[str, Any]) -> Path:
    """Write a checkpoint of a tower with random weights, with the reference's processor; returns its folder."""
    model = encoder_checkpoint(folder, torch.float32, **tower).path
    config = (model / "config.json").read_bytes()
    for file in open_checkpoint(str(REFERENCE)).processor_files():
        shutil.copyfile(file, model / file.name)
    (model / "config.json").write_bytes(config)
    return model


def make_bundle(
    size: str, out: Path, buckets: str, depth: int = 0, int8: bool = True, precisions: Sequence[str] = ("fp32",)
) -> Path:
    """Write the model and its bundle, calibrated where `int8` asks for it; the bundle's folder comes back."""
    tower = TOWERS[size]
    if depth:
        levels = len(tower["deepstack_visual_indexes"])
        indexes = [level * depth // levels for level in range(levels)]
        tower = tower | {"depth": depth, "deepstack_visual_indexes": indexes}
    model = random_model(out / f"random-{size}", tower)
    export_bundle(str(model), out / "bundle", image_buckets=buckets, precisions=precisions)
    if not int8:
        return out / "bundle"
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
    parser.add_argument("--depth", type=int, default=0, help="layers of the tower; 0 for all")
    parser.add_argument("--no-int8", action="store_true", help="leave the calibration out")
    parser.add_argument("--precisions", default="fp32", help="of fp32, fp16, comma separated")
    arguments = parser.parse_args()
    precisions = arguments.precisions.split(",")
    make_bundle(arguments.size, arguments.out, arguments.buckets, arguments.depth, not arguments.no_int8, precisions)


if __name__ == "__main__":
    main()
