"""All attacks, or some, on a real server and a real daemon.

python -m qwen3vl_edge.tools.dev.attack.run [NAME …] [--times 40] [--at-once 8] [--seconds 10]
    [--out docs/reports/benchmarks/attack.json]

Exit code 1 if one costs more than docs/guides/server/security.md says, or the honest client beside it was not served.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.attack import bodies, connections, media
from qwen3vl_edge.tools.dev.attack.attack import Attack
from qwen3vl_edge.tools.dev.attack.measure import POOLED_THREADS, Cost, measure
from qwen3vl_edge.tools.dev.attack.open_target import Models, open_target
from qwen3vl_edge.tools.dev.attack.table import Bound, read_bounds

CPU_SECONDS, HEALTHZ_MS, KEPT_MIB = 1.0, 100.0, 64
ATTACKS = {attack.name: attack for attack in (*bodies.ATTACKS, *connections.ATTACKS, *media.ATTACKS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *ATTACKS], default=[])
    parser.add_argument("--reference", type=Path, default=Path("reference/qwen3vl-tiny"))
    parser.add_argument("--bundle", type=Path, help="of that checkpoint; made if it is not given")
    parser.add_argument("--times", type=int, default=40, help="requests of each attack")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack at least")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = [attack for name, attack in ATTACKS.items() if not arguments.names or name in arguments.names]
    costs: list[Cost] = []
    bounds = read_bounds()
    with tempfile.TemporaryDirectory(prefix="qwen3vl-attack-") as scratch:
        models = Models(arguments.reference, arguments.bundle or _bundle(arguments.reference, Path(scratch)))
        for (side, settings), attacks in groupby(chosen, lambda attack: (attack.against, attack.settings)):
            with open_target(side, models, settings) as target:
                for attack in attacks:
                    costs.append(measure(attack, target, arguments.times, arguments.at_once, arguments.seconds))
                    sys.stdout.write(json.dumps(asdict(costs[-1])) + "\n")
                    sys.stdout.flush()
    excesses = [
        text for cost in costs for text in excesses_of(cost, ATTACKS[cost.name], bounds[cost.name], arguments.at_once)
    ]
    for text in excesses:
        sys.stderr.write(f"{text}\n")
    if arguments.out is not None:
        document = {"environment": environment(), "rows": [asdict(cost) for cost in costs]}
        atomic.write_bytes(arguments.out, (json.dumps(document, indent=1) + "\n").encode())
    raise SystemExit(1 if excesses else 0)


def _bundle(reference: Path, folder: Path) -> Path:
    export_bundle(str(reference), folder / "bundle", image_buckets="128x128", video_buckets="8x96x96")
    return folder / "bundle"


def excesses_of(cost: Cost, attack: Attack, bound: Bound, at_once: int) -> list[str]:
    """In which ways an attack cost more than its row and the goals say."""
    found = []
    if other := set(cost.statuses) - bound.statuses:
        found.append(f"answered {sorted(other)}")
    found += cost.disagreements
    for what, value, most in (
        ("MiB of memory", cost.peak_mib, bound.mib * at_once),
        ("CPU seconds a request", 0.0 if attack.admitted else cost.cpu_s, CPU_SECONDS),
        ("ms until /healthz (p99)", cost.p99_ms, HEALTHZ_MS),
        ("failed /healthz", cost.failures, 0),
        ("MiB kept", cost.kept_mib, KEPT_MIB),
        ("threads kept", cost.kept_threads, POOLED_THREADS),
    ):
        if value > most:
            found.append(f"{value} {what}, at most {most}")
    return [f"{cost.name}: {text}" for text in found]


if __name__ == "__main__":
    main()
