"""Distance between the next-token distributions of two runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def kl_divergence(reference_logits: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """KL(reference ‖ other) in nats per step, from logits [steps, vocabulary]."""
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference_logits, logits))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1), dtype=np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)
