"""Training data: files and data sets become documents, documents become ids, ids become batches.

Knows nothing of the model that is trained on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.data.batches import IGNORE_INDEX, BrokenRow, PackedBatch, PackedStream, TextStream

__all__ = ["IGNORE_INDEX", "BrokenRow", "PackedBatch", "PackedStream", "TextStream"]

__getattr__ = names_of(__name__, "batches")
