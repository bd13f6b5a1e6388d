"""All attacks, or some, on a real server and a real daemon.

python -m qwen3vl_edge.tools.dev.attack.run [NAME …] [--times 40] [--at-once 8]
    [--out docs/reports/benchmarks/attack.json]

Exit code 1 if one costs more than docs/guides/server/security.md says, or the honest client beside it was not served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.tools.dev.attack import bodies
from qwen3vl_edge.tools.dev.attack.measure import Cost, measure
from qwen3vl_edge.tools.dev.attack.target import Target
from qwen3vl_edge.tools.server_process import running_server

ATTACKS = {attack.name: attack for attack in (*bodies.ATTACKS,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *ATTACKS], default=[])
    parser.add_argument("--reference", type=Path, default=Path("reference/qwen3vl-tiny"))
    parser.add_argument("--times", type=int, default=40, help="requests of each attack")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = [attack for name, attack in ATTACKS.items() if not arguments.names or name in arguments.names]
    costs: list[Cost] = []
    for settings, attacks in groupby(chosen, lambda attack: (attack.against, attack.settings)):
        with open_target(settings[0], arguments.reference, settings[1]) as target:
            for attack in attacks:
                costs.append(measure(attack, target, arguments.times, arguments.at_once))
                sys.stdout.write(json.dumps(asdict(costs[-1])) + "\n")
                sys.stdout.flush()
    if arguments.out is not None:
        document = {"environment": environment(), "rows": [asdict(cost) for cost in costs]}
        atomic.write_bytes(arguments.out, (json.dumps(document, indent=1) + "\n").encode())


@contextmanager
def open_target(side: str, reference: Path, settings: dict[str, Any]) -> Iterator[Target]:
    """A server or daemon with these settings, ready."""
    assert side == "server"
    with running_server(threads=1, model=str(reference), **settings) as server:
        model_hash = httpx.get(f"{server.url}/readyz").json()["model_hash"]
        yield Target(side, server.url, server.process.pid, model_hash, server.log)


if __name__ == "__main__":
    main()
