"""The kit's steps: a new one is a line here and a function that reports rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.gpu.context import Context, Report

Work = Callable[[Context, Report], None]


@dataclass(frozen=True)
class Step:
    """One step, in a process of its own.

    Attributes:
        load: imports what it needs, and returns its work.
        seconds: after which its process is ended.
        beside: runs beside the others: work that is not timed, and beside which nothing is timed that it would slow.
        needs: steps that must have ended before, whose files it reads.
        after: the same, of steps that would slow one another while timed; a dry run times nothing and does not wait.
        attempts: how often its process may be started; one that dies goes on after the row at which it died.
    """

    load: Callable[[], Work]
    seconds: float
    beside: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    attempts: int = 1


def _environment() -> Work:
    from qwen3vl_edge.tools.dev.gpu.peaks import report_peaks

    return report_peaks


def _export(size: str) -> Work:
    from qwen3vl_edge.tools.dev.gpu.exports import export_size

    return partial(export_size, size)


def _tests() -> Work:
    from qwen3vl_edge.tools.dev.gpu.gpu_tests import run_gpu_tests

    return run_gpu_tests


def _parity() -> Work:
    from qwen3vl_edge.tools.dev.gpu.parity import report_parity

    return report_parity


def _encoder(size: str) -> Work:
    from qwen3vl_edge.tools.dev.gpu.encoder import bench_encoder

    return partial(bench_encoder, size)


def _server() -> Work:
    from qwen3vl_edge.tools.dev.gpu.server import bench_server

    return bench_server


def _compiled_generate() -> Work:
    from qwen3vl_edge.tools.dev.gpu.server import bench_compiled_generate

    return bench_compiled_generate


# What has been measured least comes first: a run that is out of time lacks the last ones. Exports and parity run beside
# the tests, which are not timed either; beside the server's eager candidates, which wait for the CPU, nothing runs.
STEPS: dict[str, Step] = {
    "environment": Step(_environment, 40),
    "server": Step(_server, 90),
    "tests": Step(_tests, 120),
    "export-8B": Step(partial(_export, "8B"), 90, beside=True, after=("server",)),
    "parity": Step(_parity, 80, beside=True, after=("server",)),
    "encoder-8B": Step(partial(_encoder, "8B"), 90, needs=("export-8B",), after=("parity",), attempts=3),
    "export-2B": Step(partial(_export, "2B"), 60, beside=True, after=("server",)),
    "encoder-2B": Step(partial(_encoder, "2B"), 120, needs=("export-2B",), after=("parity",), attempts=3),
    "generate-static": Step(_compiled_generate, 70),
}


def chosen(names: str) -> tuple[str, ...]:
    """The steps of a comma separated list, all for an empty one, with those that they need.

    Raises:
        InputError: there is no such step.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(STEPS)
    for name in wanted:
        if name not in STEPS:
            raise InputError("no such step", field="--steps", expected=", ".join(STEPS), got=name)
    # A bench needs its own export.
    own = [f"export-{name.removeprefix('encoder-')}" for name in wanted if name.startswith("encoder-")]
    return tuple(name for name in STEPS if name in {*wanted, *own})
