"""The basis that a bundle holds for embeddings on the wire."""

from __future__ import annotations

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.basis import Basis, read_basis


def open_basis(bundle: Bundle) -> Basis:
    """The basis of a bundle.

    Raises:
        InputError: it has none, or another model's.
    """
    record = bundle.manifest.basis
    if record is None:
        raise InputError(
            "the bundle has no basis for embeddings",
            field="--wire-dtype",
            expected="fp16 or another that needs none",
            remedy=f"Fit one: qwen3vl-edge fit-basis {bundle.path} --data YOUR_PICTURES",
        )
    return read_basis(bundle.path / record.path, bundle.manifest.model.model_hash, record.path)
