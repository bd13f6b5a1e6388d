"""What building an engine of a full-size encoder costs: seconds, bytes, peak memory; profiles against per-bucket.

python -m qwen3vl_edge.tools.dev.bench.engines --sizes 2B --out docs/reports/benchmarks/engines-2B.json

Encoders have random weights: bytes and build time depend on shapes alone. Each build runs in a process of its
own, so that its peak memory is its own. Needs no GPU for the targets of tensorrt_rtx.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.machine.environment import environment, peak_memory

TARGETS = ("desktop-ada", "rtx-portable", "desktop-rtx")


def build_one(bundle: Path, target: str, precision: str, layout: str) -> dict[str, Any]:
    """Build one engine in this process and say what it took."""
    from qwen3vl_edge.export.tensorrt.build_engines import build_engines
    from qwen3vl_edge.export.tensorrt.build_job import BuildRequest

    record = build_engines(bundle, BuildRequest(target, precision=precision, layout=layout)).record
    sizes = [(bundle / plan.path).stat().st_size for plan in record.plans]
    return {
        "target": target,
        "precision": precision,
        "layout": layout,
        "library": f"{record.library} {record.library_version}",
        "buckets": [bucket for plan in record.plans for bucket in plan.buckets],
        "plans": len(sizes),
        "bytes": sum(sizes),
        "seconds": record.seconds,
        "peak_memory": peak_memory(),
    }


def in_own_process(bundle: Path, target: str, precision: str, layout: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "qwen3vl_edge.tools.dev.bench.engines",
        "--one",
        str(bundle),
        target,
        precision,
        layout,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def run(sizes: list[str], buckets: str, video: str, work: Path, out: Path | None) -> None:
    """Export each size once, then build every target, precision and layout from it."""
    rows = []
    for size in sizes:
        bundle = _export(size, buckets, video, work)
        weights = {name: (bundle / name / "weights.bin").stat().st_size for name in ("fp32", "fp16")}
        for target in TARGETS:
            for precision in ("fp32", "fp16"):
                for layout in ("profiles", "per-bucket") if target == TARGETS[0] else ("profiles",):
                    row = {"size": size, "weights": weights[precision]}
                    row |= in_own_process(bundle, target, precision, layout)
                    rows.append(row)
                    sys.stderr.write(f"{json.dumps(row)}\n")
                    forget_engines(bundle)
        shutil.rmtree(work / size)
    text = json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def _export(size: str, buckets: str, video: str, work: Path) -> Path:
    from qwen3vl_edge.export.bundle import export_bundle
    from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS, encoder_checkpoint

    folder = work / size
    folder.mkdir(parents=True, exist_ok=True)
    encoder_checkpoint(folder / "model", **TOWERS[size])
    bundle = folder / "bundle"
    export_bundle(
        str(folder / "model"),
        bundle,
        image_buckets=buckets,
        video_buckets=video or None,
        precisions=("fp32", "fp16"),
        image_uint8=False,
    )
    return bundle


def forget_engines(bundle: Path) -> None:
    """Delete all engines from disk and manifest: plans of full-size encoders fill a disk."""
    from dataclasses import replace

    from qwen3vl_edge.contract.bundle.edit import edit
    from qwen3vl_edge.contract.bundle.trt_plans import ENGINE_FOLDER

    with edit(bundle) as change:
        change.manifest = replace(change.manifest, engines=())
    shutil.rmtree(bundle / ENGINE_FOLDER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2B,8B")
    parser.add_argument("--buckets", default="448x448,480x640,1024x1024")
    parser.add_argument("--video", default="8x448x448")
    parser.add_argument("--work", type=Path, default=Path("bundles/bench"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, metavar=("BUNDLE", "TARGET", "PRECISION", "LAYOUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        bundle, *rest = arguments.one
        sys.stdout.write(json.dumps(build_one(Path(bundle), *rest)) + "\n")
        return
    run(arguments.sizes.split(","), arguments.buckets, arguments.video, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
