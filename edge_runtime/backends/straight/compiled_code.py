"""The tower's steps compiled by torch.compile, and the folder in which the compiled code is kept between starts."""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional

from qwen3vl_edge.edge_runtime.backends.proof_store import machine_cache
from qwen3vl_edge.edge_runtime.backends.straight.tower import Steps, block, deepstack, embed, merge

logger = logging.getLogger("edge")
# Inductor's variable: kernels, graphs and what it tuned are all kept below this folder.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# How many processes Inductor starts to compile kernels in, each with a torch of its own, as soon as it is first used:
# one a core by default, up to 32. No step has more kernels than these four; a start that compiles nothing needs none.
PROCESSES_VARIABLE, PROCESSES = "TORCHINDUCTOR_COMPILE_THREADS", 4


def compiled_steps(backend: str = "inductor") -> Steps:
    """The steps, compiled for the grid with which they are first called: one set of them for each grid.

    Args:
        backend: of torch.compile; "eager" traces and compiles nothing.
    """
    return Steps(*(_compiled(step, backend) for step in (embed, block, deepstack, merge)))


@contextmanager
def starting_compiler(device: torch.device) -> Iterator[None]:
    """Start, in a thread, what a GPU's first picture needs beside the weights; they are read in this context.

    Importing Inductor and Triton and loading cuBLAS and cuDNN takes seconds, most of a second start. What fails here
    fails again, and is reported, when the tower is made ready.
    """

    def start() -> None:
        with suppress(Exception), torch.inference_mode():
            x = torch.ones(1, 1, 64, 64, device=device, dtype=torch.float16)
            functional.scaled_dot_product_attention(x, x, functional.linear(x, x[0, 0]))
            torch.compile(torch.neg, dynamic=False)(x)

    thread = threading.Thread(target=start, name="starting-compiler")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _compiled(step: Callable[..., Any], backend: str) -> Any:
    assert isinstance(step, FunctionType)
    # A code object of its own: torch compiles one for at most 8 sizes (its recompile limit), and buckets may be more.
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
    own.__annotations__ = step.__annotations__
    return torch.compile(own, fullgraph=True, dynamic=False, backend=backend)


def keep_compiled_code(gpu: str, environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Have Inductor keep its code in a folder of this user's cache, one for each version and GPU.

    Where the variable is set already, its folder is used.

    Args:
        gpu: name of the GPU that the code is for.

    Returns:
        The folder; None where this user has no cache folder, and Inductor's own choice (below /tmp) applies.
    """
    if VARIABLE in environment:
        return Path(environment[VARIABLE])
    base = machine_cache(environment)
    if base is None:
        return None
    versions = f"torch-{torch.__version__}-python-{platform.python_version()}"
    folder = base / "compiled" / re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{versions}-{gpu}")
    kept = folder.is_dir() and any(folder.iterdir())
    if not kept:
        _tell_of_others(folder)
        with suppress(OSError):
            # Python code that the next start runs: this user's alone.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment[VARIABLE] = str(folder)
    environment.setdefault(PROCESSES_VARIABLE, "1" if kept else str(min(PROCESSES, os.cpu_count() or 1)))
    return folder


def _tell_of_others(folder: Path) -> None:
    kept = folder.parent.iterdir() if folder.parent.is_dir() else ()
    others = sorted(other.name for other in kept if other != folder)
    if others:
        logger.warning(
            "compiled code is kept for %s and not for %s: the encoder is compiled again, once; the folders of versions "
            "that are gone may be deleted: %s",
            ", ".join(others),
            folder.name,
            folder.parent,
        )
    else:
        logger.info("the encoder is compiled, once: its code is kept in %s", folder)
