"""How sure a share is that was counted: Wilson's score interval. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

# Two-sided 95 %: the customary one.
_Z = 1.959963984540054


class Share(NamedTuple):
    """``number`` of ``total``, and between what the true share lies, 95 times of 100."""

    number: int
    total: int

    @property
    def value(self) -> float | None:
        """The share itself, 0 to 1; None of nothing."""
        return self.number / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval: it keeps within 0 to 1 and is sound for 0 of few, where the usual one is not."""
        if not self.total:
            return 0.0, 1.0
        share, squared = self.number / self.total, _Z * _Z
        middle = share + squared / (2 * self.total)
        spread = _Z * math.sqrt((share * (1 - share) + squared / (4 * self.total)) / self.total)
        whole = 1 + squared / self.total
        # What is exactly 0 or 1 comes out of the rounding a little beside it.
        low = 0.0 if self.number == 0 else max(0.0, (middle - spread) / whole)
        high = 1.0 if self.number == self.total else min(1.0, (middle + spread) / whole)
        return low, high

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"

    def as_json(self) -> dict[str, object]:
        """For a program."""
        low, high = self.interval
        return {
            "number": self.number,
            "total": self.total,
            "share": self.value,
            "low": round(low, 6),
            "high": round(high, 6),
        }
