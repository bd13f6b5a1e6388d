"""The tokens file behind links, as Ansible and Kubernetes lay it out: added to where it really is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen3vl_edge.server.http.tokens import TokenFile, add_token, read_tokens
from tests.support.run_cli import run_here


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A link to a file through a linked folder, and that file."""
    release = tmp_path / "..2026_11_27"
    release.mkdir()
    (tmp_path / "..data").symlink_to(release.name)
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "tokens.toml"
    link.symlink_to(tmp_path / "..data" / "tokens.toml")
    return link, release / "tokens.toml"


def test_a_link_stays_one_and_its_file_is_added_to(linked: tuple[Path, Path]) -> None:
    link, file = linked
    add_token(link, "first")  # through a link that leads to nothing yet
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12345, 54321)
    before = file.stat()
    made = run_here("server-token", "second", "--file", str(link))
    assert made.returncode == 0, made.stderr
    assert link.is_symlink()
    assert [entry.name for entry in read_tokens(file)] == ["first", "second"]
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    for folder in (link.parent, file.parent):
        assert [path.name for path in folder.iterdir()] == ["tokens.toml"]
    entry = TokenFile(link).find(made.stdout.strip().encode())
    assert entry is not None
    assert entry.name == "second"


def test_writers_through_different_links_lose_nothing(tmp_path: Path, linked: tuple[Path, Path]) -> None:
    link, file = linked
    other = tmp_path / "other.toml"
    other.symlink_to(link)
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            pool.submit(add_token, (link, other, file)[number % 3], f"client-{number}")
    assert {entry.name for entry in read_tokens(file)} == {f"client-{number}" for number in range(40)}
