"""`qwen3vl-edge bench`: one part against its peers and its floor, each a module with its own options."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from typing import Annotated

import typer

from qwen3vl_edge.contract.errors import InputError

WORKSHOP = "qwen3vl_edge.tools.dev"
BENCHES = {
    "encoder": "bench.encoder",
    "wire": "bench.wire",
    "packing": "bench.packing",
    "smaller": "bench.smaller",
    "server": "load.run",
    "engine": "load.engine",
    "concurrency": "bench.concurrency",
    "e2e": "bench.end_to_end",
    "growth": "bench.growth",
    "hot-paths": "bench.hot_paths",
    "startup": "bench.startup",
    "engines": "bench.engines",
}


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=", ".join(BENCHES))],
) -> None:
    """Measure one part against its peers and its floor; `bench NAME --help` shows its options."""
    if name not in BENCHES:
        raise InputError("no such bench", field="NAME", expected=", ".join(BENCHES), got=name[:40])
    if importlib.util.find_spec(WORKSHOP) is None:  # it is not part of the wheel
        remedy = "Run it in a checkout of the repository: pip install -e '.[export,edge,server,bench]'"
        raise InputError("the benchmarks are not installed", field="NAME", remedy=remedy)
    module = f"{WORKSHOP}.{BENCHES[name]}"
    sys.argv = [module, *context.args]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "qwen3vl_edge":
            raise
        remedy = "pip install -e '.[bench]'"
        raise InputError(f"{error.name} is not installed", field=name, remedy=remedy) from None
