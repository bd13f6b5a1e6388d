"""Start, serve and stop the server. torch and the web framework are imported when `serve` runs."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.bundle.checkpoint import PROCESSOR_FILES, Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.processor_files import image_processor_config
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.listener import http_server, listen, quiet_stop, renew_tls
from qwen3vl_edge.contract.http.tls import ServerTls
from qwen3vl_edge.contract.http.tracing import start_tracing
from qwen3vl_edge.contract.machine.startup_objects import exclude_from_collections
from qwen3vl_edge.contract.wire.basis import Bases, bases_of, read_basis
from qwen3vl_edge.server.engines.choice import VLLM, EngineChoice, choose_engine, require_transformers
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness

if TYPE_CHECKING:
    import uvicorn

    from qwen3vl_edge.server.engines.protocol import Engine
    from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
    from qwen3vl_edge.server.openai.pixels import PixelEncoder

logger = logging.getLogger("server")


def serve(options: ServerOptions) -> None:
    """Load the language model and answer requests until SIGTERM or Ctrl-C; returns after a clean stop.

    The port answers immediately, `/readyz` with 503 until the model is loaded and warm.

    Raises:
        InputError: the address cannot be used, or a file or folder of the options cannot be used.
        CheckpointError: the model cannot be loaded.
    """
    tls = options.tls
    checkpoint = open_checkpoint(options.model, patterns=[*PROCESSOR_FILES, "generation_config.json", "*.safetensors*"])
    _ = checkpoint.visual_tensors  # rejects a wrong checkpoint before torch is imported
    bases = bases_of(*(read_basis(path, checkpoint.model_hash, "wire_basis") for path in options.wire_basis))
    engine = choose_engine(options, checkpoint.config["model_type"])
    if engine.name == VLLM:
        from qwen3vl_edge.server.engines.vllm.arguments import require_vllm

        require_vllm()
    else:
        require_transformers()
    listener = listen(options.host, options.port)
    try:
        _serve_on(listener, checkpoint, options, tls, bases, engine)
    finally:
        listener.close()


def _serve_on(
    listener: socket.socket,
    checkpoint: Checkpoint,
    options: ServerOptions,
    tls: ServerTls | None,
    bases: Bases,
    choice: EngineChoice,
) -> None:
    from qwen3vl_edge.server.app import create_app, record_refusal
    from qwen3vl_edge.server.http.access import warn_of_open_doors
    from qwen3vl_edge.server.state import open_state

    _log_to_stderr()
    start_tracing("qwen3vl-server")
    readiness = Readiness(choice.reason)
    state = open_state(readiness, options, bases)
    app, limits = create_app(state), options.connection_limits
    server = http_server(app, options.drain_s, tls, limits=limits, on_refusal=partial(record_refusal, state))
    warn_of_open_doors(options)
    if image_processor_config(checkpoint.path) is None:
        logger.warning("%s has no preprocessor_config.json: its model hash is no device's", checkpoint.path)
    if state.guard.rereads or tls is not None:
        _on_hangup(state.guard.on_hangup, partial(_renew_tls, server, options))
    url = _url(listener, options)
    logger.info("engine: %s", choice)
    logger.info("loading %s; %s answers 503 until it is ready", checkpoint.path, url)
    loader = threading.Thread(
        target=_load, args=(checkpoint, options, choice.name, readiness, server, url), daemon=True
    )
    loader.start()
    with quiet_stop():
        server.run(sockets=[listener])
    if readiness.loaded:
        readiness.engine.close()
    state.close()
    if readiness.failure is not None:
        raise readiness.failure
    logger.info("stopped")


def _load(
    checkpoint: Checkpoint, options: ServerOptions, name: str, readiness: Readiness, server: uvicorn.Server, url: str
) -> None:
    try:
        engine, pixels = _open_engine(checkpoint, options, name)
    except BaseException as error:
        readiness.failure = error
        server.should_exit = True
        return
    exclude_from_collections()
    readiness.set(engine, pixels)
    logger.info("listening on %s", url)


def _open_engine(checkpoint: Checkpoint, options: ServerOptions, name: str) -> tuple[Engine, PixelEncoder | None]:
    """The engine, loaded and warm, and the vision tower if the options enable it."""
    if name == VLLM:
        from qwen3vl_edge.server.engines.vllm.start import open_engine

        engine: Engine = open_engine(checkpoint, options)
        logger.info("ready: %s, %s", engine.loaded.name, engine.loaded.describe())
        return engine, None
    return _open_transformers(checkpoint, options)


def _open_transformers(checkpoint: Checkpoint, options: ServerOptions) -> tuple[Engine, PixelEncoder | None]:
    from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
    from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
    from qwen3vl_edge.server.engines.transformers.language_model import load_language_model

    batch = BatchOptions(
        max_queue=options.max_queue,
        max_queue_per_client=options.max_queue_per_client or None,
        max_batch=options.max_batch,
        max_batch_tokens=options.max_batch_tokens,
        max_seconds=options.max_generation_s,
        stall_s=options.stall_s,
        prefix_bytes=options.prefix_cache_mib * 2**20,
        prefix_s=options.prefix_cache_s,
        capture=options.capture,
        capture_sizes=options.captured_sizes,
    )
    engine = TransformersEngine(load_language_model(checkpoint, options), options.limits, batch)
    engine.warm_up()
    _announce(engine.loaded)
    logger.info("decode steps: %s", engine.steps_are)
    if not options.allow_pixels:
        return engine, None
    from qwen3vl_edge.contract.formats.bounded_file import bound_png_text
    from qwen3vl_edge.server.engines.transformers.vision_tower import load_vision_tower

    bound_png_text()
    tower = load_vision_tower(checkpoint, engine.loaded, options.pixel_policy)
    logger.info("the vision tower is loaded too: chats may carry pictures (--allow-pixels)")
    return engine, tower


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
    scheme = "https" if options.tls_cert is not None else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _on_hangup(*reread: Callable[[], None]) -> None:
    """Reload files on SIGHUP; unhandled, the signal ends the process, as when a terminal is closed."""
    if threading.current_thread() is threading.main_thread():

        def reread_all(*_: object) -> None:
            for call in reread:
                call()

        signal.signal(signal.SIGHUP, reread_all)


def _renew_tls(server: uvicorn.Server, options: ServerOptions) -> None:
    """Reload the certificate and key; an invalid pair is logged, and the previous one stays in use."""
    try:
        if (tls := options.tls) is not None:
            renew_tls(server, tls)
            logger.info("certificates reloaded")
    except (InputError, OSError) as error:
        logger.error("the previous certificates stay in use: %s", error)


def _log_to_stderr() -> None:
    """Log plain lines to stderr, unless logging is already configured."""
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
