"""Start, serve, stop. torch and the web framework are imported when `serve` runs."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from typing import TYPE_CHECKING

from contract.checkpoint import PROCESSOR_FILES, Checkpoint, open_checkpoint
from contract.http_listener import http_server, listen, quiet_stop
from server.options import ServerOptions
from server.readiness import Readiness

if TYPE_CHECKING:
    import uvicorn

    from server.engines.protocol import Engine
    from server.engines.transformers.language_model import LoadedModel

logger = logging.getLogger("server")


def serve(options: ServerOptions) -> None:
    """Load the language model and answer requests until SIGTERM or Ctrl-C; returns after a clean stop.

    The port answers at once, `/readyz` with 503 until the model is loaded and warm.

    Raises:
        InputError: the address cannot be listened on.
        CheckpointError: the model cannot be loaded.
    """
    checkpoint = open_checkpoint(options.model, patterns=[*PROCESSOR_FILES, "generation_config.json", "*.safetensors*"])
    _ = checkpoint.visual_tensors  # a wrong checkpoint is told before torch is imported
    if options.engine == "vllm":
        from server.engines.vllm.arguments import require_vllm

        require_vllm()
    listener = listen(options.host, options.port)
    try:
        _serve_on(listener, checkpoint, options)
    finally:
        listener.close()


def _serve_on(listener: socket.socket, checkpoint: Checkpoint, options: ServerOptions) -> None:
    from server.app import create_app

    _log_to_stderr()
    readiness = Readiness()
    server = http_server(create_app(readiness, options), options.drain_s)
    url = _url(listener, options)
    logger.info("loading %s; %s answers 503 until it is ready", checkpoint.path, url)
    loader = threading.Thread(target=_load, args=(checkpoint, options, readiness, server, url), daemon=True)
    loader.start()
    with quiet_stop():
        server.run(sockets=[listener])
    if readiness.loaded:
        readiness.engine.close()
    if readiness.failure is not None:
        raise readiness.failure
    logger.info("stopped")


def _load(
    checkpoint: Checkpoint, options: ServerOptions, readiness: Readiness, server: uvicorn.Server, url: str
) -> None:
    try:
        engine = _open_engine(checkpoint, options)
    except BaseException as error:
        readiness.failure = error
        server.should_exit = True
        return
    readiness.set(engine)
    logger.info("listening on %s", url)


def _open_engine(checkpoint: Checkpoint, options: ServerOptions) -> Engine:
    """Loaded, and warm: it has generated."""
    if options.engine == "vllm":
        from server.engines.vllm.start import open_engine

        engine: Engine = open_engine(checkpoint, options)
        logger.info("ready: %s, %s", engine.loaded.name, engine.loaded.describe())
        return engine
    return _open_transformers(checkpoint, options)


def _open_transformers(checkpoint: Checkpoint, options: ServerOptions) -> Engine:
    from server.engines.transformers.engine import BatchOptions, TransformersEngine
    from server.engines.transformers.language_model import load_language_model

    batch = BatchOptions(
        max_queue=options.max_queue,
        max_queue_per_client=options.max_queue_per_client or None,
        max_batch=options.max_batch,
        max_batch_tokens=options.max_batch_tokens,
        max_seconds=options.max_generation_s,
        stall_s=options.stall_s,
        prefix_bytes=options.prefix_cache_mib * 2**20,
        prefix_s=options.prefix_cache_s,
    )
    engine = TransformersEngine(load_language_model(checkpoint, options), options.limits, batch)
    engine.warm_up()
    _announce(engine.loaded)
    return engine


def _announce(loaded: LoadedModel) -> None:
    logger.info(
        "ready: %s, language model of %s parameters (vision encoder of %s not loaded), %s, %s, attention %s",
        loaded.name,
        f"{loaded.parameters:,}",
        f"{loaded.vision_parameters:,}",
        loaded.device,
        str(loaded.dtype).removeprefix("torch."),
        loaded.attention,
    )


def _url(listener: socket.socket, options: ServerOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _log_to_stderr() -> None:
    """Plain lines on stderr, unless the program around has set up logging already."""
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
