"""The bundle's own graphs and engines, on each backend that may run them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.precision import EXPORTED, PRECISIONS
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend, ServedGrids
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting
from qwen3vl_edge.tools.dev.bench.encoder.pytorch import refuse_emulated_bf16

PROVIDERS = ("cpu", "openvino", "cuda", "tensorrt", "nv-tensorrt-rtx")
LIBRARIES = ("tensorrt", "tensorrt_rtx")


def peers(bundle: Bundle) -> list[Peer]:
    """Every precision of the bundle on every backend; its dynamic graph on the CPU backends."""
    peers = []
    for precision in (item.precision for item in bundle.manifest.precisions):
        dtype = PRECISIONS[precision].quantized or PRECISIONS[precision].rest
        for provider in PROVIDERS:
            options = BackendOptions(precision=precision, provider=provider)
            load = partial(_load, "onnxruntime", options, False)
            peers.append(Peer(f"ours, onnxruntime {provider} {precision}", dtype, load))
        for backend in ("openvino", "openvino-bf16"):
            options = BackendOptions(precision=precision)
            kind = "bf16" if backend == "openvino-bf16" and PRECISIONS[precision].quantized is None else dtype
            peers.append(Peer(f"ours, {backend} {precision}", kind, partial(_load, backend, options, False)))
        if precision in EXPORTED:
            options = BackendOptions(precision=precision, device="cuda")
            peers.append(Peer(f"ours, pytorch cuda {precision}", dtype, partial(_load, "pytorch", options, False)))
        for library in LIBRARIES:
            options = BackendOptions(precision=precision)
            peers.append(Peer(f"ours, {library} {precision}", dtype, partial(_load, library, options, False)))
        if bundle.manifest.has_dynamic(precision):
            for backend in ("onnxruntime", "openvino"):
                load = partial(_load, backend, BackendOptions(precision=precision), True)
                peers.append(Peer(f"ours, {backend} {precision}, dynamic graph", dtype, load))
    peers.append(
        Peer("ours, pytorch cuda bf16", "bf16", partial(_load, "pytorch", BackendOptions("bf16", device="cuda"), False))
    )
    for precision in ("fp32", "bf16"):
        peers.append(Peer(f"ours, pytorch cpu {precision} compiled", precision, partial(_load_compiled, precision)))
    return peers


def _load(backend: str, options: BackendOptions, dynamic: bool, setting: Setting) -> Candidate:
    bundle = open_bundle(setting.bundle)
    if dynamic:
        bundle = _without_fixed_graphs(bundle)
    options = replace(options, threads=setting.threads, model=setting.model)
    loaded: EncoderBackend = load_backend(backend, bundle, options)
    serves = loaded.serves
    if setting.grid not in serves.buckets and not (dynamic and serves.dynamic):
        raise ContractError(f"it has no bucket {setting.grid}")

    def run(pixels: Pixels) -> Outputs:
        embeddings = loaded.run(setting.grid, pixels)
        return embeddings.embeds, *embeddings.deepstack

    on_device = getattr(loaded, "device_seconds", None)
    return Candidate(run, on_device and (lambda pixels: on_device(setting.grid, pixels)))


def _load_compiled(precision: str, setting: Setting) -> Candidate:
    """The straight tower on the CPU, compiled for one grid by Inductor."""
    import torch

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.edge_runtime.backends.pytorch import StraightBackend

    refuse_emulated_bf16(torch.device("cpu"), precision)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    bundle, checkpoint = open_bundle(setting.bundle), open_checkpoint(str(setting.model))
    serves = ServedGrids((setting.grid,), dynamic=False)
    loaded = StraightBackend(bundle, checkpoint, torch.device("cpu"), precision, serves, compiled=True)

    def run(pixels: Pixels) -> Outputs:
        embeddings = loaded.run(setting.grid, pixels)
        return embeddings.embeds, *embeddings.deepstack

    return Candidate(run)


def _without_fixed_graphs(bundle: Bundle) -> Bundle:
    sets = tuple(
        replace(item, graphs=tuple(graph for graph in item.graphs if graph.kind == "dynamic"))
        for item in bundle.manifest.precisions
    )
    return replace(bundle, manifest=replace(bundle.manifest, precisions=sets))
