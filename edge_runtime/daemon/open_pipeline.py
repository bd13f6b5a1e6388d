"""A bundle opened as the settings say, and proven to encode: at start, and again at each reload."""

from __future__ import annotations

from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.daemon.media_access import MediaAccess
from qwen3vl_edge.edge_runtime.daemon.sensors import resident_bytes
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions

# What a reload applies; all else needs a restart.
RELOADED = (
    "bundle",
    "backend",
    "provider",
    "target",
    "precision",
    "threads",
    "model",
    "cache",
    "cache_mib",
    "media_folders",
    "allow_private_urls",
    "max_media_mib",
    "stack",
    "preprocess",
    "cameras",
)


def open_pipeline(config: DaemonConfig, bandwidth: BandwidthEstimate | None = None) -> EncodePipeline:
    """Open, load, and encode a drawn picture. Its cameras are not started: they may be in use by another pipeline.

    Args:
        bandwidth: to the server.

    Raises:
        ContractError: the bundle, backend or settings cannot be used; nothing is left open.
    """
    engine = BackendOptions(config.precision, config.threads, config.model, config.provider, config.target)
    options = EdgeOptions(
        config.backend,
        engine,
        cache=config.cache,
        cache_bytes=config.cache_mib * 2**20,
        stack=config.stack,
        preprocess=config.preprocess,
        wire_dtype=config.wire_dtype,
        wire_target_s=config.wire_target_s,
    )
    access = MediaAccess(config.media_folders, config.allow_private_urls, config.max_media_mib * 2**20)
    before = resident_bytes()
    # Graphs are loaded when first needed: a link that is moved before the reload must not lead into another bundle.
    edge = open_edge(config.bundle.resolve(), options, bandwidth or BandwidthEstimate())
    try:
        pipeline = EncodePipeline(edge, access, config.cameras)
    except BaseException:  # a camera that the engine cannot serve
        edge.engine.close()
        raise
    try:
        pipeline.self_test()
        pipeline.engine_memory = {
            "host": max(resident_bytes() - before, 0),
            "device": int(getattr(pipeline.edge.engine, "device_bytes", 0)),
        }
    except BaseException:
        pipeline.close()
        raise
    return pipeline
