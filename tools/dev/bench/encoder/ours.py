"""The bundle's own graphs and engines, on each backend that may run them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting

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
        for library in LIBRARIES:
            options = BackendOptions(precision=precision)
            peers.append(Peer(f"ours, {library} {precision}", dtype, partial(_load, library, options, False)))
        if bundle.manifest.has_dynamic(precision):
            for backend in ("onnxruntime", "openvino"):
                load = partial(_load, backend, BackendOptions(precision=precision), True)
                peers.append(Peer(f"ours, {backend} {precision}, dynamic graph", dtype, load))
    return peers


def _load(backend: str, options: BackendOptions, dynamic: bool, setting: Setting) -> Candidate:
    bundle = open_bundle(setting.bundle)
    if dynamic:
        bundle = _without_fixed_graphs(bundle)
    loaded: EncoderBackend = load_backend(backend, bundle, replace(options, threads=setting.threads))
    serves = loaded.serves
    if setting.grid not in serves.buckets and not (dynamic and serves.dynamic):
        raise ContractError(f"it has no bucket {setting.grid}")

    def run(pixels: Pixels) -> Outputs:
        embeddings = loaded.run(setting.grid, pixels)
        return embeddings.embeds, *embeddings.deepstack

    on_device = getattr(loaded, "device_seconds", None)
    return Candidate(run, on_device and (lambda pixels: on_device(setting.grid, pixels)))


def _without_fixed_graphs(bundle: Bundle) -> Bundle:
    sets = tuple(
        replace(item, graphs=tuple(graph for graph in item.graphs if graph.kind == "dynamic"))
        for item in bundle.manifest.precisions
    )
    return replace(bundle, manifest=replace(bundle.manifest, precisions=sets))
