"""`tensorrt` or `tensorrt_rtx`, imported at the first use; both have one API.

`trt` is that library, as a module that is imported lazily; `using` chooses which of the two:

    with using("tensorrt_rtx"):
        builder = trt.Builder(logger_into(log))

To the type checker `trt` is the module `tensorrt`: each attribute is checked against the bindings of every
supported version (tests/export/test_tensorrt_api.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from qwen3vl_edge.contract.errors import EngineError

__all__ = [
    "RTX_BEFORE_BLACKWELL",
    "CollectedLog",
    "dimensions",
    "import_library",
    "installed",
    "logger_into",
    "rtx_takes",
    "trt",
    "using",
]

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


# What TensorRT-RTX 1.7's builder says of an H200 (9.0): "supported compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0".
# 7.5 has a target of its own.
RTX_BEFORE_BLACKWELL = ("7.5", "8.0", "8.6", "8.9")


def rtx_takes(compute_capability: str) -> bool:
    """Whether TensorRT-RTX builds for and runs on such a GPU ("8.9"): no data-centre GPU after the A100, no Jetson."""
    return compute_capability in RTX_BEFORE_BLACKWELL or int(compute_capability.split(".")[0]) >= 12


_library: ContextVar[str] = ContextVar("tensorrt_library")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Inside the block, in this thread, `trt` is the library `name`.

    Raises:
        EngineError: as `import_library`.
    """
    import_library(name)
    token = _library.set(name)
    try:
        yield
    finally:
        _library.reset(token)


class _LazyLibrary:
    """Attributes of the library that `using` has chosen."""

    def __getattr__(self, attribute: str) -> Any:
        name = _library.get(None)
        if name is None:
            raise RuntimeError(f"trt.{attribute} is used outside of `using`")
        return getattr(import_library(name), attribute)


if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = _LazyLibrary()


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
    """What the library logged while it parsed and built.

    Attributes:
        layers: the list of a finished plan's kernels, which TensorRT-RTX logs; "" where there was none.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def reason(self) -> str:
        """The first error: it is the cause, and those after it are usually its consequences."""
        return self.errors[0] if self.errors else "the library gave no reason"


def logger_into(log: CollectedLog) -> Any:
    """The process's logger for the library in use; it also collects into `log` for as long as `log` lives.

    There is one per library, and it is never freed: the library keeps a raw pointer to the first logger that it
    receives, as long as any of its objects lives, and only warns about later ones.
    """
    logger = _logger(trt.ILogger)
    logger.logs.add(log)
    return logger


@cache
def _logger(base: Any) -> Any:
    """The one logger of the library whose `ILogger` is `base`."""
    # Bound here: the library logs from threads of its own, outside of `using`.
    error, warning = trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING
    verbose = trt.ILogger.Severity.VERBOSE

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.logs: WeakSet[CollectedLog] = WeakSet()

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if int(severity) <= int(error):
                for log in list(self.logs):
                    log.errors.append(message)
            elif severity == warning:
                for log in list(self.logs):
                    log.warnings.append(message)
            elif severity == verbose and message.startswith("Layers:"):
                for log in list(self.logs):
                    log.layers = message

    return Logger()
