"""`qwen3vl-edge demo`: all steps on the reference checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    work: Annotated[Path, typer.Option(help="Where the bundle is written.")] = Path("bundles/demo"),
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("reference/qwen3vl-tiny"),
    samples: Annotated[Path, typer.Option(help="Folder with questions.jsonl.")] = Path("reference/samples"),
) -> None:
    """Export the reference checkpoint, start a server, ask, and compare with the unsplit model."""
    from qwen3vl_edge.tools.demo import run

    run(work, model, samples)
