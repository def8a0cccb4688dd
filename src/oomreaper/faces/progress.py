"""How far something long is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import time

# A bar is redrawn so often; a line in a log is written so rarely.
_BAR_S, _LINE_S = 0.1, 10.0
_BAR_COLUMNS = 24


class Progress:
    """Begins with its making; ``what`` is counted."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begun_s = self._said_s = time.monotonic()
        self._is_drawn = False

    def update(self, done: int, total: int) -> None:
        """So many are done."""
        now_s = time.monotonic()
        if now_s - self._said_s < (_BAR_S if self._is_bar else _LINE_S):
            return
        self._said_s = now_s
        rate = done / (now_s - self._begun_s)
        left = f"{(total - done) / rate:.0f} s left" if rate else "begun"
        if not self._is_bar:
            print(f"oomreaper: {done} of {total} {self._what}, {left}", file=sys.stderr, flush=True)
            return
        full = _BAR_COLUMNS * done // max(total, 1)
        bar = "#" * full + "." * (_BAR_COLUMNS - full)
        print(f"\r[{bar}] {done} of {total} {self._what}, {left}\x1b[K", end="", file=sys.stderr, flush=True)
        self._is_drawn = True

    def clear(self) -> None:
        """Make room for a line."""
        if self._is_drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_drawn = False

    def close(self) -> None:
        """There will be no more."""
        self.clear()
