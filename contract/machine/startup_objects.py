"""Objects that live as long as the process are left out of Python's garbage collections."""

from __future__ import annotations

import gc


def exclude_from_collections() -> None:
    """Exclude all objects that exist now.

    After torch is imported and a model loaded there are a million. A collection that walks over them stops all threads
    for a fifth of a second, and parsing one large body sets off several.
    """
    gc.collect()
    gc.freeze()
