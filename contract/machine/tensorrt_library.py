"""`tensorrt` or `tensorrt_rtx`, imported when a build needs it; both have one API.

Functions that use it import `tensorrt as trt` for the type checker alone, so that every attribute is checked
against the bindings of each supported version (tests/export/test_tensorrt_api.py), and get the module from here.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from qwen3vl_edge.contract.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

INSTALL = {
    "tensorrt": "On a Jetson it comes with JetPack; elsewhere: pip install 'qwen3vl-edge[tensorrt]'",
    "tensorrt_rtx": "Install it with: pip install 'qwen3vl-edge[rtx]'",
}


def import_library(name: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        EngineError: not installed, or its shared libraries do not load.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError(f"{name} cannot be imported ({error})", field="--target", remedy=INSTALL[name]) from None


def installed(name: str) -> bool:
    """Whether the module imports here."""
    try:
        import_library(name)
    except EngineError:
        return False
    return True


def dimensions(shape: Any) -> tuple[int | str, ...]:
    """A `Dims` as a tuple; a size that differs between profiles, -1 to TensorRT, is "any"."""
    sizes = (int(shape[index]) for index in range(len(shape)))
    return tuple("any" if size < 0 else size for size in sizes)


class CollectedLog:
    """What the library logged while it parsed and built, for the error that names the reason."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def reason(self) -> str:
        """The first error, which is the cause; those after it are usually its consequences."""
        return self.errors[0] if self.errors else "the library gave no reason"


def logger_into(library: Any, log: CollectedLog) -> Any:
    """The process's logger for the library, which from now on also collects into `log` for as long as that lives.

    There is one, and it is never freed: the library keeps a bare pointer to the first logger that it is given,
    for as long as any of its objects lives, and only warns about the later ones.
    """
    logger = _logger(library)
    logger.logs.add(log)
    return logger


@cache
def _logger(library: Any) -> Any:
    if TYPE_CHECKING:
        module = trt
    else:
        module = library

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.logs: WeakSet[CollectedLog] = WeakSet()

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if int(severity) <= int(module.ILogger.Severity.ERROR):
                for log in list(self.logs):
                    log.errors.append(message)
            elif severity == module.ILogger.Severity.WARNING:
                for log in list(self.logs):
                    log.warnings.append(message)

    return Logger()
