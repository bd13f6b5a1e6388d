"""A new bundle without downtime: SIGHUP opens it beside the old one, which serves until the new one has encoded.

For as long as both are open the device needs memory for two engines. A bundle that cannot be used changes nothing:
the old one stays in use, and the reason is logged, counted and shown by `/readyz`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.formats.settings import settings_of
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.daemon.open_pipeline import open_pipeline
from qwen3vl_edge.edge_runtime.daemon.systemd import notify

logger = logging.getLogger("edge")


class Reloader:
    """Reads the settings again and swaps the pipeline; one reload at a time, and one more if signalled meanwhile.

    Args:
        read: the settings as they are now.
    """

    def __init__(self, daemon: Daemon, read: Callable[[], DaemonConfig]) -> None:
        self._daemon = daemon
        self._read = read
        self._signalled = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Reload at each SIGHUP, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGHUP, self._signalled.set)
        except (RuntimeError, ValueError, NotImplementedError):
            return  # not the main thread: a program that embeds the daemon handles its own signals
        try:
            while True:
                await self._signalled.wait()
                self._signalled.clear()
                await self.reload()
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    async def reload(self) -> bool:
        """Whether the new settings serve now."""
        started = time.monotonic()
        # systemd.service(5), Type=notify-reload: the stamp distinguishes this reload from an earlier one.
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            old, config = self._daemon.pipeline, self._read()
            new = await asyncio.to_thread(open_pipeline, config, self._daemon.bandwidth)
        except Exception as error:
            self._failed(error)
            return False
        finally:
            notify("READY=1")
        self._daemon.started = new
        # A V4L2 device cannot be opened twice. Until the new cameras have frames they answer 503 with Retry-After.
        await asyncio.to_thread(old.cameras.close)
        new.cameras.start()
        self._warn_of_settings_that_need_a_restart(config)
        self._report("ok", new)
        logger.info("reloaded %s in %.1f s", config.bundle, time.monotonic() - started)
        closing = asyncio.create_task(old.close_when_idle())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return True

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ContractError):
            logger.error("not reloaded, the old bundle stays in use: %s", error)
        else:
            logger.error("not reloaded, the old bundle stays in use", exc_info=error)
            error = InputError("the bundle could not be opened; the log has the reason", field="bundle")
        self._daemon.metrics.reloads.labels("failed").inc()
        self._daemon.last_reload = {"result": "failed", "at": int(time.time()), "error": error.to_openai()["error"]}

    def _report(self, result: str, pipeline: EncodePipeline) -> None:
        self._daemon.metrics.reloads.labels(result).inc()
        model = pipeline.edge.bundle.manifest.model
        self._daemon.last_reload = {"result": result, "at": int(time.time()), "model_hash": model.model_hash}

    def _warn_of_settings_that_need_a_restart(self, config: DaemonConfig) -> None:
        before = self._daemon.config
        changed = [
            name
            for name, item in settings_of(DaemonConfig).items()
            if not item.setting.reloadable and getattr(config, name) != getattr(before, name)
        ]
        if changed:
            logger.warning("changed settings that need a restart: %s", ", ".join(changed))
