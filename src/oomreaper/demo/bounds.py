"""How large the victim may be: as large as wished where that leaves enough for everybody else. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.errors import KernelError, UsageError

if TYPE_CHECKING:
    from oomreaper.linux.room import Room

MIB = 1 << 20
# Below that the bars say nothing: the interpreter itself holds 5 MiB.
SMALLEST_BYTES = 16 * MIB
# What stays free beside the victim, where there is that much.
_LEFT_FREE_BYTES = 1024 * MIB
# On a small machine, or in a small container, the victim takes a quarter of what is free.
_SMALL_SHARE = 4


class Size(NamedTuple):
    """The victim's size, and why it is less than was asked for ("" when it is not)."""

    size_bytes: int
    why_less: str


def choose_size(wanted_bytes: int, room: Room) -> Size:
    """The size for a victim of ``wanted_bytes`` in this ``room``.

    Raises:
        UsageError: ``wanted_bytes`` is below the smallest that shows anything.
        KernelError: There is not even room for that.
    """
    if wanted_bytes < SMALLEST_BYTES:
        raise UsageError(
            f"a victim of {wanted_bytes} bytes shows nothing; give it at least {SMALLEST_BYTES // MIB} MiB"
        )
    free_bytes, where = room.available_bytes, "on this machine"
    if room.below_limits_bytes is not None and room.below_limits_bytes < free_bytes:
        free_bytes, where = room.below_limits_bytes, "below the memory limit of this control group"
    safe_bytes = max(free_bytes - _LEFT_FREE_BYTES, free_bytes // _SMALL_SHARE) // MIB * MIB
    found = f"{free_bytes // MIB} MiB are free {where}"
    if safe_bytes < SMALLEST_BYTES:
        raise KernelError(
            f"only {found}, too little for a demo that endangers nobody: it takes at most a quarter of that, and needs "
            f"{SMALLEST_BYTES // MIB} MiB; free {_SMALL_SHARE * SMALLEST_BYTES // MIB} MiB or raise the limit"
        )
    if safe_bytes >= wanted_bytes:
        return Size(wanted_bytes, "")
    return Size(
        safe_bytes,
        f"the victim gets {safe_bytes // MIB} MiB, not {wanted_bytes // MIB}: {found}, and most must stay so",
    )
