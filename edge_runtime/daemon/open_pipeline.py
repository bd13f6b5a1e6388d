"""Opens the bundle of the settings and tests that it encodes: at the start and at each reload."""

from __future__ import annotations

from qwen3vl_edge.contract.formats.bounded_file import bound_png_text
from qwen3vl_edge.contract.machine.resident_memory import resident_bytes
from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy


def open_pipeline(config: DaemonConfig, bandwidth: BandwidthEstimate | None = None) -> EncodePipeline:
    """Open the bundle, load the encoder, and run its self-test.

    The cameras are not started: their devices may be in use by the pipeline that this one replaces.

    Args:
        bandwidth: to the server, measured so far.

    Raises:
        ContractError: the bundle, backend or settings cannot be used; nothing is left open.
    """
    backend_options = BackendOptions(
        config.precision,
        config.threads,
        config.model,
        config.provider,
        config.target,
        config.self_test,
        config.device,
        config.dtype,
    )
    options = EdgeOptions(
        config.backend,
        backend_options,
        cache=config.cache,
        cache_bytes=config.cache_mib * 2**20,
        stack=config.stack,
        preprocess=config.preprocess,
        wire_dtype=config.wire_dtype,
        wire_target_s=config.wire_target_s,
        limits=config.media_limits,
        exif_orientation=config.exif_orientation,
        clip_seconds=config.clip_seconds,
    )
    access = AccessPolicy(
        folders=config.media_folders,
        private_addresses=config.allow_private_urls,
        max_bytes=config.max_media_mib * 2**20,
        timeout_s=config.fetch_timeout_s,
        setting="max_media_mib",
    )
    bound_png_text()
    before = resident_bytes()
    # Graphs are loaded lazily: a symbolic link that moves before the reload must not lead into another bundle.
    edge = open_edge(config.bundle.resolve(), options, bandwidth or BandwidthEstimate())
    try:
        pipeline = EncodePipeline(edge, access, config.cameras, config.stall_s)
    except BaseException:  # a camera that the encoder cannot serve
        edge.encoder.close()
        raise
    try:
        pipeline.self_test()
        pipeline.engine_memory = {
            "host": max(resident_bytes() - before, 0),
            "device": int(getattr(pipeline.edge.encoder, "device_bytes", 0)),
        }
    except BaseException:
        pipeline.close()
        raise
    return pipeline
