"""A constant tensor, available on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Constant"]


class Constant:
    """A tensor that is copied to each device once."""

    def __init__(self, tensor: Tensor) -> None:
        self._on = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device."""
        if device not in self._on:
            self._on[device] = next(iter(self._on.values())).to(device)
        return self._on[device]
