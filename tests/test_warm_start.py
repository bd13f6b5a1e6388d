"""What the tests start is a fork, unless it asks for another environment: else each start imports torch anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.warm_start import ForkedProcess, ForkServer


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("QWEN3VL_EDGE_PORT", ForkedProcess),
        ("OTEL_BSP_SCHEDULE_DELAY", ForkedProcess),
        ("TORCHINDUCTOR_CACHE_DIR", ForkedProcess),  # torch sets it in its own process, once the compiler is loaded
        ("PATH", ForkedProcess),  # decord adds its own folder
        ("OMP_NUM_THREADS", subprocess.Popen),
    ],
)
def test_another_variable(warm_start: ForkServer, monkeypatch: pytest.MonkeyPatch, variable: str, kind: type) -> None:
    monkeypatch.setenv(variable, "7")
    code = f"import os, sys; sys.exit(int(os.environ[{variable!r}]))"
    with open(os.devnull, "wb") as nowhere:
        process = warm_start.start([sys.executable, "-c", code], stdout=nowhere, stderr=nowhere)
    assert isinstance(process, kind)
    assert process.wait(60) == 7
