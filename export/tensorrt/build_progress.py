"""Progress of a TensorRT build, from IProgressMonitor; Ctrl-C stops the build at its next step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qwen3vl_edge.contract.machine.tensorrt_library import trt

T = TypeVar("T")
Progress = Callable[[str, float], None]


@dataclass
class _Phase:
    steps: int
    parent: str | None
    done: int = 0
    children: dict[str, None] = field(default_factory=dict)


class BuildProgress:
    """Nested phases, each of a known number of steps, as one share that only grows."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._lock = threading.Lock()  # the library may call from threads of its own

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(max(steps, 1), parent)
            if parent in self._phases:
                self._phases[parent].children[name] = None
            self._report_share(name)

    def step(self, name: str, index: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
                self._report_share(name)

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent in self._phases:
                self._phases[phase.parent].children.pop(name, None)

    def _report_share(self, name: str) -> None:
        roots = [key for key, phase in self._phases.items() if phase.parent not in self._phases]
        self._share = max(self._share, max((self._done(root) for root in roots), default=0.0))
        self._report(name.lower(), self._share)

    def _done(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._done(child) for child in phase.children), default=0.0)
        return min(1.0, (phase.done + inner) / phase.steps)


def progress_monitor(progress: BuildProgress, cancelled: threading.Event) -> Any:
    """An IProgressMonitor of the library in use: reports to `progress`, and stops the build once `cancelled`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def run_cancellable(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread: Ctrl-C reaches this one, where no library's callback or import can suppress it.

    Args:
        work: gets an event; once it is set, it should stop by raising (`stop_if`).

    Raises:
        KeyboardInterrupt: after the event was set and `work` has stopped.
    """
    cancelled = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="build") as pool:
        future = pool.submit(work, cancelled)
        try:
            return future.result()
        except KeyboardInterrupt:
            cancelled.set()
            if future.exception() is None:  # waits; it was done before it checked the event
                return future.result()
            raise


def stop_if(cancelled: threading.Event) -> None:
    """Raises: KeyboardInterrupt: the event is set."""
    if cancelled.is_set():
        raise KeyboardInterrupt
