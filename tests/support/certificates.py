"""Certificates of small authorities of our own, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


def _run(*arguments: object) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def _new_key(path: Path) -> Path:
    _run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
    return path


def make_authority(folder: Path, name: str) -> Pair:
    """A root that signs."""
    pair = Pair(folder / f"{name}.pem", _new_key(folder / f"{name}.key"))
    extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _run("req", "-x509", "-key", pair.key, "-out", pair.cert, "-days", 2, "-subj", f"/CN={name}", *extensions)
    return pair


def make_certificate(folder: Path, name: str, authority: Pair, names: str = "") -> Pair:
    """One that `authority` signed; `names` as subjectAltName has them, such as "IP:127.0.0.1"."""
    pair = Pair(folder / f"{name}.pem", _new_key(folder / f"{name}.key"))
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
    _run("req", "-new", "-key", pair.key, "-out", request, "-subj", f"/CN={name}")
    signed = ("-CA", authority.cert, "-CAkey", authority.key, "-CAcreateserial", "-days", 2, "-extfile", extensions)
    _run("x509", "-req", "-in", request, "-out", pair.cert, *signed)
    return pair


def with_pass_phrase(key: Path, out: Path) -> Path:
    """The key, encrypted."""
    _run("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", out)
    return out
