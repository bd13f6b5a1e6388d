"""`qwen3vl-edge bench`: one part against its peers and its floor, each a module with its own options."""

from __future__ import annotations

import runpy
import sys

from qwen3vl_edge.contract.errors import InputError

BENCHES = {
    "encoder": "qwen3vl_edge.tools.dev.bench.encoder",
    "wire": "qwen3vl_edge.tools.dev.bench.wire",
    "packing": "qwen3vl_edge.tools.dev.bench.packing",
    "smaller": "qwen3vl_edge.tools.dev.bench.smaller",
    "server": "qwen3vl_edge.tools.dev.load.run",
    "concurrency": "qwen3vl_edge.tools.dev.bench.concurrency",
    "e2e": "qwen3vl_edge.tools.dev.bench.end_to_end",
    "growth": "qwen3vl_edge.tools.dev.bench.growth",
    "hot-paths": "qwen3vl_edge.tools.dev.bench.hot_paths",
    "startup": "qwen3vl_edge.tools.dev.bench.startup",
    "engines": "qwen3vl_edge.tools.dev.bench.engines",
}


def run(name: str, arguments: list[str]) -> None:
    """Run one with its own arguments.

    Raises:
        InputError: no such bench, or the packages of its peers are missing.
    """
    if name not in BENCHES:
        raise InputError("no such bench", field="NAME", expected=", ".join(BENCHES), got=name[:40])
    module = BENCHES[name]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("tools", "contract", "edge_runtime", "server", "export"):
            raise
        remedy = "pip install 'qwen3vl-edge[bench]'"
        raise InputError(f"{error.name} is not installed", field=name, remedy=remedy) from None
