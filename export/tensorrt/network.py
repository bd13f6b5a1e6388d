"""An ONNX graph of the bundle as a strongly typed TensorRT network, every node native, I/O as the manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.tensor_spec import TensorSpec
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.tensorrt_library import CollectedLog, dimensions, import_library, logger_into

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class ParsedGraph:
    """A parsed network; the parser owns the weights, so it must live until the plan is built."""

    builder: trt.Builder
    network: trt.INetworkDefinition
    parser: trt.OnnxParser
    log: CollectedLog


def parse_graph(library: str, path: Path, graph: GraphRecord) -> ParsedGraph:
    """Parse a graph and hold its inputs and outputs against the manifest.

    Raises:
        EngineError: the parser refuses a node (named with op and reason), a node would run in a plugin, or a
            tensor is not what the manifest records.
    """
    if TYPE_CHECKING:
        module = trt
    else:
        module = import_library(library)
    log = CollectedLog()
    logger = logger_into(module, log)
    builder = module.Builder(logger)
    # Strongly typed: dtypes are the graph's; no builder flag may change one.
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise EngineError(f"{library} cannot parse {graph.path}: {_parser_errors(parser)}", field=graph.path)
    parsed = ParsedGraph(builder, network, parser, log)
    _refuse_plugins(module, network, graph)
    check_tensors(graph.inputs, _inputs(module, network), graph.path)
    check_tensors(graph.outputs, _outputs(module, network), graph.path)
    return parsed


def _parser_errors(parser: trt.OnnxParser) -> str:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
        found.append(f"{where}{error.desc()}")
    return "; ".join(found) or "no reason given"


def _refuse_plugins(library: Any, network: trt.INetworkDefinition, graph: GraphRecord) -> None:
    """A plugin is code that the device may not have, and runs in a precision of its own."""
    if TYPE_CHECKING:
        module = trt
    else:
        module = library
    plugins = {kind for name, kind in module.LayerType.__members__.items() if name.startswith("PLUGIN")}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in plugins:
            raise EngineError(f"{graph.path}: node {layer.name} would run in a plugin", field=graph.path)


def _inputs(library: Any, network: trt.INetworkDefinition) -> list[TensorSpec]:
    return [_spec(library, network.get_input(index)) for index in range(network.num_inputs)]


def _outputs(library: Any, network: trt.INetworkDefinition) -> list[TensorSpec]:
    return [_spec(library, network.get_output(index)) for index in range(network.num_outputs)]


def _spec(library: Any, tensor: trt.ITensor) -> TensorSpec:
    if TYPE_CHECKING:
        module = trt
    else:
        module = library
    return TensorSpec(tensor.name, np.dtype(module.nptype(tensor.dtype)).name, dimensions(tensor.shape))


def check_tensors(expected: tuple[TensorSpec, ...], actual: list[TensorSpec], source: str) -> None:
    """Hold the I/O of a network or an engine against the manifest; symbolic dimensions match any other.

    Raises:
        EngineError: names the tensor that differs.
    """
    if [spec.name for spec in expected] != [spec.name for spec in actual]:
        raise EngineError(
            f"{source}: other tensors than the manifest's",
            field=source,
            expected=", ".join(spec.name for spec in expected),
            got=", ".join(spec.name for spec in actual),
        )
    for want, have in zip(expected, actual, strict=True):
        if want.dtype != have.dtype or fixed_shape(want) != fixed_shape(have):
            raise EngineError(f"{source}: tensor {want.name} differs", field=want.name, expected=want, got=have)


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape with -1 for each symbolic dimension, as TensorRT writes it."""
    return tuple(-1 if isinstance(size, str) else size for size in spec.shape)
