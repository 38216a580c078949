"""How a long simulation treats the garbage collector."""

from __future__ import annotations

import gc


def ease_collection() -> None:
    """Look for cycles rarely, in this whole process: a simulation makes millions of objects and next to no
    cycles, and looking for them at the default thresholds costs a tenth of its time."""
    gc.set_threshold(200_000, 20, 100)
    gc.freeze()
