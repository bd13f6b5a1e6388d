"""The pages that are written by code are as the code writes them now."""

from __future__ import annotations

import pytest

from qwen3vl_edge.tools.dev import cli_page, settings_page
from tests.support.paths import ROOT


@pytest.mark.parametrize(("name", "text"), [("settings", settings_page.page()), ("cli", cli_page.page())])
def test_the_page_is_current(name: str, text: str) -> None:
    command = f"python -m qwen3vl_edge.tools.dev.{name}_page > docs/reference/{name}.md"
    assert (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8") == text, f"write it anew: {command}"
