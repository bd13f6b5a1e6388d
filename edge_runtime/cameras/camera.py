"""One camera: its reader thread, its window of temporal patches, and its counters."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from qwen3vl_edge.contract.bundle.buckets import BucketChoice, measure
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.frame_patches import native_grid, patchify, resize_frame
from qwen3vl_edge.edge_runtime.cameras.sampling import Frame, Sampler
from qwen3vl_edge.edge_runtime.cameras.source import OPEN_SECONDS, frames
from qwen3vl_edge.edge_runtime.cameras.window import FRAMES, Snapshot, TemporalPatch, Window
from qwen3vl_edge.edge_runtime.edge import Edge

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0
CLOSE_SECONDS = OPEN_SECONDS + 1
Submit = Callable[[Callable[[], None]], "Future[None]"]
logger = logging.getLogger("edge")


class CameraNotReadyError(ContractError):
    """No recent frames."""

    status = 503
    code = "camera_not_ready"
    retry_after = 2


class Camera:
    """Reads frames in a thread of its own from `start` on, and reconnects after a loss.

    In memory: the latest frame, one unpaired frame, and the window's temporal patches.

    Args:
        submit: queues work for the encoder's thread; this camera has at most one piece in the queue.

    Raises:
        InputError, BucketError: the encoder cannot serve one temporal patch of the camera's size.
    """

    def __init__(self, config: CameraConfig, edge: Edge, submit: Submit) -> None:
        self.config = config
        self.window = Window(config.name, config.seconds, config.fps, partial(patchify, hf=edge.processor.hf))
        self.connected = False
        self.error = ""
        self.frames_read = self.sampled = self.reconnects = 0
        self.latest: Frame | None = None
        self._edge, self._submit = edge, submit
        self._geometry = edge.policy.geometry
        if self._geometry.temporal_patch_size != FRAMES:
            raise InputError("cameras need temporal patches of two frames", field="cameras")
        self._grid = self._configured_grid()
        self._choice: BucketChoice | None = None
        self._shape: tuple[int, ...] = ()
        self._rate, self._rate_since, self._rate_frames = 0.0, time.monotonic(), 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._busy = False
        self._thread = threading.Thread(target=self._read, name=f"camera-{config.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the reader to stop, without waiting for it."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait until the source is closed, at most as long as opening it may take."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    def clip(self, seconds: float | None = None) -> Snapshot:
        """The window as it is now, or its last `seconds`.

        Raises:
            CameraNotReadyError: no two frames within the window's time.
        """
        choice = self._choice
        snapshot = None if choice is None else self.window.snapshot(time.monotonic(), choice, seconds)
        if snapshot is None:
            raise self._not_ready()
        return snapshot

    def image(self) -> Any:
        """The latest sampled frame as a PIL image of the source's size.

        Raises:
            CameraNotReadyError: none within the window's time.
        """
        from PIL import Image

        latest = self.latest
        if latest is None or time.monotonic() - latest.seconds > self.config.seconds + FRAMES / self.config.fps:
            raise self._not_ready()
        return Image.fromarray(latest.rgb)

    def state(self) -> dict[str, Any]:
        """The camera's entry of `GET /v1/cameras`."""
        latest = self.latest
        return {
            "id": self.config.name,
            "source": self.config.shown_source,
            "encode": self.config.encode,
            "connected": self.connected,
            "error": self.error,
            "encode_error": self.window.error,
            "fps_seen": round(self._rate, 3) if self.connected else 0.0,
            "frames_seen": self.frames_read,
            "frames_sampled": self.sampled,
            "last_frame_age_s": None if latest is None else round(time.monotonic() - latest.seconds, 3),
            "grid": None if self._choice is None else str(self._choice.grid),
            "patches": len(self.window),
            "patches_most": self.window.capacity,
            "patches_encoded": self.window.encoded,
            "patches_unencoded": self.window.unencoded,
            "frames_unpaired": self.window.unpaired,
            "reconnects": self.reconnects,
        }

    def _configured_grid(self) -> Grid | None:
        if not self.config.size:
            return None
        height, width = map(int, self.config.size.split("x"))
        grid, serves = self._geometry.image_grid(height, width), self._edge.encoder.serves
        if grid not in serves.buckets and not serves.dynamic:
            raise InputError(
                f"no graph serves one temporal patch of camera {self.config.name}",
                field=f"cameras.{self.config.name}.size",
                expected=", ".join(str(bucket) for bucket in serves.buckets if bucket.t == 1) or "a 1xHxW bucket",
                got=str(grid),
            )
        return grid

    def _not_ready(self) -> CameraNotReadyError:
        return CameraNotReadyError(
            f"camera {self.config.name} has no frames yet",
            field="url",
            got=self.error or ("connected" if self.connected else "not connected"),
            remedy="Try again; GET /v1/cameras shows its state.",
        )

    def _read(self) -> None:
        wait = FIRST_RETRY_SECONDS
        while not self._stop.is_set():
            try:
                for frame in frames(self.config, CountingSampler(self, Sampler(self.config.fps)), self._stop):
                    self.connected, self.error, wait = True, "", FIRST_RETRY_SECONDS
                    self._take(frame)
                self.error = "the source ended"
            except ContractError as error:
                self.error = str(error)
            except Exception as error:  # without its thread the camera would stay dead
                logger.exception("camera %s failed", self.config.name)
                self.error = type(error).__name__
            self.connected = False
            if self._stop.wait(wait * random.uniform(0.75, 1.25)):
                return
            wait = min(wait * 2, LAST_RETRY_SECONDS)
            self.reconnects += 1
            logger.info("camera %s: %s; trying again", self.config.name, self.error)

    def _take(self, frame: Frame) -> None:
        self.sampled += 1
        shape = frame.rgb.shape
        if self._choice is None or shape != self._shape:
            frames_of_window = self.window.capacity * FRAMES
            native = native_grid(shape[0], shape[1], frames_of_window, self._geometry, self._edge.policy.pixels)
            fixed = self._grid in self._edge.encoder.serves.buckets
            self.window.clear()
            self._choice = (
                self._edge.policy.choose(native) if self._grid is None else measure(native, self._grid, fixed)
            )
            self._shape = shape
        self.latest = frame
        complete = self.window.add(frame.seconds, self._resized(frame.rgb, self._choice.grid))
        if complete and self.config.encode == "always":
            self._encode_newest()

    def _resized(self, rgb: Any, grid: Grid) -> Any:
        return resize_frame(rgb, *self._geometry.pixels(grid), self._edge.policy.pixels)

    def _encode_newest(self) -> None:
        with self._lock:
            patch = None if self._busy else self.window.newest_missing()
            if patch is None:
                return
            self._busy = True
        try:
            self._submit(partial(self._encode, patch))
        except RuntimeError:  # the encoder's thread has stopped
            self._stop.set()

    def _encode(self, patch: TemporalPatch) -> None:
        try:
            self.window.encode([patch], self._edge.encode_items)
        except Exception as error:
            # The next temporal patch is a new try; `state` shows the error from the window.
            logger.error(
                "camera %s: a temporal patch cannot be encoded (%s)",
                self.config.name,
                self.window.error,
                exc_info=None if isinstance(error, ContractError) else error,
            )
            return
        finally:
            self._busy = False
        self._encode_newest()  # queued again, behind the requests that wait there


class CountingSampler:
    """A sampler that also counts the source's frames and measures their rate."""

    def __init__(self, camera: Camera, sampler: Sampler) -> None:
        self._camera, self._sampler = camera, sampler

    def __call__(self, seconds: float) -> bool:
        camera = self._camera
        camera.frames_read += 1
        camera._rate_frames += 1
        since = time.monotonic() - camera._rate_since
        if since >= 2:
            camera._rate = camera._rate_frames / since
            camera._rate_since, camera._rate_frames = time.monotonic(), 0
        return self._sampler.take(seconds)
