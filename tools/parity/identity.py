"""What identifies a bundle across machines: its model and the files that `export` wrote.

Not the manifest's own hash: `build` writes engines into the manifest on the device, and the bundle is still
the one that a workstation holds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from contract.bundle import Bundle, sha256_of
from contract.engines import ENGINE_FOLDER
from contract.manifest import MANIFEST_NAME, Manifest


def bundle_identity(manifest: Manifest) -> str:
    """sha256 hex over the model hash and the path and hash of each exported file."""
    exported = sorted((file.path, file.sha256) for file in manifest.files if not _of_engine(file.path))
    return hashlib.sha256(json.dumps([manifest.model.model_hash, exported]).encode()).hexdigest()


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Hashes and versions that belong beside every figure of a bundle."""
    manifest = bundle.manifest
    return {
        "model": manifest.model.id,
        "model_hash": manifest.model.model_hash,
        "bundle_identity": bundle_identity(manifest),
        "manifest_sha256": sha256_of(bundle.path / MANIFEST_NAME),
        "exported_with": manifest.tools,
        "files": {file.path: file.sha256 for file in manifest.files},
    }


def _of_engine(path: str) -> bool:
    return path.startswith(f"{ENGINE_FOLDER}/")
