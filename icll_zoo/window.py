"""What the updates since the last look have measured, kept where they ran: a GPU is not waited for in between."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SUMS = ("loss", "targets", "norm", "updates")
"""What is added up since the last line of the log."""


class Bad(NamedTuple):
    """Updates that were not finite and so were left out: the first one's number, mean loss and norm, and how many."""

    update: int
    loss: float
    norm: float
    updates: int


class Window:
    """Adds up updates on their device.

    sums: (4,) float64 in the order of SUMS, over the updates that were finite; whoever logs them sets them to zero.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.last = torch.full((), torch.nan, dtype=torch.float64, device=device)
        self.first_bad = torch.full((3,), -1.0, dtype=torch.float64, device=device)
        self.bad = torch.zeros((), dtype=torch.int64, device=device)

    def count(self, update: int, measured: Tensor, targets: int) -> None:
        """Add an update. measured: (2,) float64, its summed loss and its gradient's norm."""
        total, norm = measured
        fine = measured.isfinite().all()
        new = torch.stack([total, torch.full_like(total, targets), norm, torch.ones_like(total)])
        self.sums += new.where(fine, 0.0)
        self.last = total / max(targets, 1)
        place = torch.stack([torch.full_like(total, update), self.last, norm])
        self.first_bad = self.first_bad.where(fine | (self.first_bad[0] >= 0), place)
        self.bad += ~fine

    def read(self) -> tuple[float, Bad | None]:
        """The last update's mean loss, and those that were not finite since this was last asked, if any. It waits."""
        update, loss, norm = self.first_bad.tolist()
        if update < 0:
            return self.last.item(), None
        found = Bad(int(update), loss, norm, int(self.bad))
        self.first_bad.fill_(-1)
        self.bad.zero_()
        return self.last.item(), found
