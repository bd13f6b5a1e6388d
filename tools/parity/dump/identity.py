"""The identity of a bundle's encoder across machines: its model, and one precision's graphs and weights.

Not the manifest's own hash: `build` writes engines into the manifest on the device and `calibrate` more sets on
the workstation, without a change to the set that was dumped.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME, Manifest
from qwen3vl_edge.contract.bundle.open import Bundle, sha256_of


def set_identity(manifest: Manifest, precision: str) -> str:
    """sha256 hex over the model hash and the path and hash of each file of the precision's set and of the processor."""
    graphs = manifest.set_for(precision)
    paths = [graphs.weights, *(graph.path for graph in graphs.graphs), *manifest.processor]
    files = sorted((path, manifest.file(path).sha256) for path in paths)
    return hashlib.sha256(json.dumps([manifest.model.model_hash, files]).encode()).hexdigest()


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Hashes and versions that belong beside every figure of a bundle."""
    manifest = bundle.manifest
    identities = {f"{item.precision} identity": set_identity(manifest, item.precision) for item in manifest.precisions}
    return {
        "model": manifest.model.id,
        "model_hash": manifest.model.model_hash,
        "manifest_sha256": sha256_of(bundle.path / MANIFEST_NAME),
        **identities,
        "exported_with": manifest.tools,
        "files": {file.path: file.sha256 for file in manifest.files},
    }
