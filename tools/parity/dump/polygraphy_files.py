"""Polygraphy's own files: inputs and outputs that `polygraphy run --load-inputs --load-outputs` reads.

One pair per graph, because polygraphy runs one graph at a time:

    polygraphy run BUNDLE/fp32/1x28x28.onnx --onnxrt --load-inputs 1x28x28.inputs.json \\
        --load-outputs 1x28x28.outputs.json
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.edge_runtime.backends.selection import choose_graph, graph_inputs
from qwen3vl_edge.tools.parity.dump.dump import dump_samples
from qwen3vl_edge.tools.parity.dump.dump_format import Dump
from qwen3vl_edge.tools.parity.encoder import named_outputs
from qwen3vl_edge.tools.parity.samples import UINT8, Case


def write_run_results(dump: Dump, manifest: Manifest, folder: Path) -> list[Path]:
    """Write `<graph>.inputs.json` and `<graph>.outputs.json` per graph of a dump, named as its file in the bundle.

    The iterations of both files are the dump's pictures, in order.

    Raises:
        InputError: polygraphy is not installed, or a file cannot be written.
    """
    json, comparator = _polygraphy()
    feeds: dict[str, list[dict[str, NDArray[Any]]]] = defaultdict(list)
    results: dict[str, list[Any]] = defaultdict(list)
    runner = f"{dump.meta.backend}-{dump.meta.precision}"
    for sample, (index, record) in zip(dump_samples(dump, manifest), dump, strict=True):
        name = {"dynamic": "dynamic", UINT8: f"{record.bucket}.uint8"}.get(record.graph, record.bucket)
        outputs = named_outputs(dump.meta.outputs, sample.embeddings)
        outputs |= {layer: dump.array(index, f"layer/{layer}") for layer in record.layers}
        feeds[name].append(_feeds(sample.case, manifest, dump.meta.precision))
        results[name].append(comparator.IterationResult(outputs, runner_name=runner))
    written = []
    for name, iterations in results.items():
        pair = {"inputs": feeds[name], "outputs": comparator.RunResults([(runner, iterations)])}
        for kind, content in pair.items():
            written.append(folder / f"{name}.{kind}.json")
            try:
                atomic.write_bytes(written[-1], json.to_json(content).encode())
            except OSError as error:
                raise InputError(f"{written[-1]} cannot be written ({error.strerror})", field="--polygraphy") from None
    return written


def _feeds(case: Case, manifest: Manifest, precision: str) -> dict[str, NDArray[Any]]:
    if case.graph == UINT8 and case.input.pixels is not None:
        return {"pixels": case.input.pixels}
    graph = choose_graph(manifest.set_for(precision), case.grid)
    return graph_inputs(manifest.vision, graph, case.grid, case.input.pixel_values)


def _polygraphy() -> tuple[Any, Any]:
    try:
        import polygraphy.comparator
        import polygraphy.json
    except ImportError:
        raise InputError(
            "polygraphy is not installed",
            field="--polygraphy",
            remedy="Install it with: pip install 'qwen3vl-edge[build]'",
        ) from None
    return polygraphy.json, polygraphy.comparator
