"""The demo from beginning to end: how large, which acts, what is said, and the exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from oomreaper.demo import acts, shortage, tellers
from oomreaper.demo.bounds import choose_size
from oomreaper.errors import KernelError
from oomreaper.linux import proc
from oomreaper.linux.room import read_room
from oomreaper.watch.errand import take_usual_signals

if TYPE_CHECKING:
    from typing import TextIO

    from oomreaper.linux.room import Room

_SHOWN, _NOT_SHOWN, _NOT_PERMITTED = 0, 1, 3
# The main act first; what SIGKILL alone does, and does not, is shown after it.
ACTS: tuple[type[shortage.Shortage | acts.ExitTrap | acts.LockTrap], ...] = (
    shortage.Shortage,
    acts.ExitTrap,
    acts.LockTrap,
)


def run(
    *,
    size_bytes: int,
    as_json: bool,
    width: int,
    use_color: bool,
    out: TextIO | None = None,
    room: Room | None = None,
) -> int:
    """Play every act that this machine lets us play.

    Args:
        size_bytes: The victim's memory; less is taken, and said, where that would leave too little for others.
        as_json: One JSON object a line instead of the text.
        width: Columns of the terminal.
        use_color: Whether the terminal wants colour.
        out: Where to print; stdout by default.
        room: How much memory may be taken; by default as found.

    Returns:
        The exit status: 0 when every act that could be played showed what it is for (the watcher got the memory of a
        victim that cannot die back, and touched nobody else; memory stayed after SIGKILL alone, and came back with the
        reap), 3 when other rights or another kernel would have changed the end, else 1.

    Raises:
        UsageError: The size is too small to show anything.
        KernelError: Too little memory, no process, watcher or reaper can be had, or no act is permitted here.
    """
    take_usual_signals()
    out = sys.stdout if out is None else out
    size = choose_size(size_bytes, _find_room() if room is None else room)
    teller: tellers.Teller
    teller = tellers.JsonLines(out) if as_json else tellers.Screen(out, width=width, use_color=use_color)
    teller.on_size(size, size_bytes)
    performances: list[acts.Performance | shortage.Watched] = []
    reasons = []
    for kind in ACTS:
        act = kind()
        try:
            if isinstance(act, shortage.Shortage):
                performances.append(act.perform(size.size_bytes, teller))
            else:
                performances.append(acts.perform(act, size.size_bytes, teller))
        except acts.SkippedError as skipped:
            reasons.append(str(skipped))
            teller.on_skipped(act, str(skipped))
    if not performances:
        raise KernelError(f"no act of the demo can be played here: {'; '.join(reasons)}")
    if all(performance.is_shown for performance in performances):
        return _SHOWN
    return _NOT_PERMITTED if any(performance.needs_permission for performance in performances) else _NOT_SHOWN


def _find_room() -> Room:
    root = proc.open_root()
    try:
        return read_room(root)
    finally:
        os.close(root)
