"""Hardly a page to be had: does the kill still go out?"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from bench.figure import Figure, Plan, rounds
from bench.ours import ours
from bench.records import Findings, Judge, Measure
from tests.victims import stage
from tests.victims.program import StageError
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from pathlib import Path

    from bench.ours import Ours

_REPEATS = 10
_VICTIM_MIB = 64
_EARLIER_VICTIM_BYTES = 1 << 20
# Each of the three workers has looked at two victims and killed two by then, and two more make sure of it.
_EARLIER_VICTIMS = 8
# How long a kill is waited for before memory is given back: some hundred times what it takes otherwise.
_PATIENCE_S = 0.25
_NS_IN_S = 1_000_000_000
# The limit is lowered in steps until the kernel finds nothing more to reclaim.
_STEP_BYTES = 64 << 10
_DEEPEST_BYTES = 16 << 20
# And so much room is then made: 32 pages. With none at all the outcome is a matter of luck, since the kernel itself
# keeps charged pages in hand, and one in every few kills of even a practised crew takes a page or two.
_ROOM_BYTES = 128 << 10


class _End(enum.IntEnum):
    """What came of a kill. ``SENT`` is 0: the share of zeros is judged."""

    SENT = 0
    NOT_BEFORE_ROOM_WAS_MADE = 1
    CREW_LOST = 2


def _measure(plan: Plan) -> Findings:
    sides: dict[str, list[float]] = {}
    for _ in rounds(plan.times(_REPEATS), "hardly a page"):
        for name, earlier in (("a fresh crew", 0), ("a crew that has served eight", _EARLIER_VICTIMS)):
            sides.setdefault(name, []).append(_try(earlier, plan.size_bytes(_VICTIM_MIB)))
    return Findings(
        [
            Measure(f"full-{number}", f"{name}: signal sent", "end", {"ours": ends}, Judge.SHARE_OF_ZEROS)
            for number, (name, ends) in enumerate(sides.items(), 1)
        ]
    )


def _try(earlier: int, size_bytes: int) -> _End:
    with own_cgroup("memory", ("memory.limit_in_bytes", "-1")) as group, ours(group=group) as stand_in:
        for _ in range(earlier):
            with stage.plain(size_bytes=_EARLIER_VICTIM_BYTES) as target:
                _kill(stand_in, target.pid)
                stand_in.wait_settled(target.pid)
        with stage.plain(size_bytes=size_bytes) as target:
            stand_in.scout(target.pid)
            _fill_up(group)
            stand_in.kill(target.pid)
            target.is_gone(_PATIENCE_S)
            (group / "memory.limit_in_bytes").write_text("-1")
            try:
                served = stand_in.wait_settled(target.pid)
            except StageError:
                return _End.CREW_LOST
            assert served.signal_ns is not None
            is_in_time = (served.signal_ns - served.submitted_ns) / _NS_IN_S < _PATIENCE_S
            return _End.SENT if is_in_time else _End.NOT_BEFORE_ROOM_WAS_MADE


def _kill(stand_in: Ours, pid: int) -> None:
    stand_in.scout(pid)
    stand_in.kill(pid)


def _fill_up(group: Path) -> None:
    """Make the group's limit what it uses and a little more; who wants yet more waits, and nobody is killed for it."""
    (group / "memory.oom_control").write_text("1")
    limit = group / "memory.limit_in_bytes"
    usage_bytes = int((group / "memory.usage_in_bytes").read_text())
    for limit_bytes in range(usage_bytes, usage_bytes - _DEEPEST_BYTES, -_STEP_BYTES):
        try:
            limit.write_text(str(limit_bytes))
        except OSError:
            break
    limit.write_text(str(int((group / "memory.usage_in_bytes").read_text()) + _ROOM_BYTES))


FIGURE = Figure(
    name="full",
    title="Hardly a page to be had: does the kill go out?",
    method="""\
The crew and its parent live in a memory cgroup of their own. When they are ready, the group's limit is lowered until
the kernel finds nothing more to take away, and 128 KiB of room is made: whoever of them touches a new page after that
is used up, or writes to one that a fork has left shared, sleeps until there is memory. Then a victim outside the group
is handed over, and 250 ms later the limit is lifted. The end is 0 where the signal had been sent by then, 1 where it
was sent only after, and 2 where the parent died of the shortage. Once with a fresh crew, once with one that has
served eight victims before, and so has touched nearly all that it needs.""",
    needs=("process_mrelease", "cc", "root", "cgroup_v1_memory"),
    measure=_measure,
)
