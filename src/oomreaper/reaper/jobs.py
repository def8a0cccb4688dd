"""What a worker can be asked, and what it answers. Pure; ``wire`` writes both on a socket.

Everything that touches a victim is a job, so that whatever it blocks on blocks a worker, which can be replaced:

========  ===========================================================================================
SCOUT     look at a target before the decision: identity, memory, who shares it, may we signal it
STRIKE    signal it and all who share its memory, process_mrelease, read what is left; in this order
PROBE     read what its address space holds now
ACCOUNT   read what is charged for it now; ``deep`` also looks for memory that nobody owns, and who pins it
HELP      help a killed victim to leave: out of a v1 freezer or throttled group, oom_score_adj 1000
INQUEST   where each of its threads stands, for the report when it is given up
========  ===========================================================================================
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.process import Scouting, Sharer, ThreadReport

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobKind(enum.StrEnum):
    """What is asked."""

    SCOUT = "scout"
    STRIKE = "strike"
    PROBE = "probe"
    ACCOUNT = "account"
    HELP = "help"
    INQUEST = "inquest"


class Job(NamedTuple):
    """One request; the victim's pidfd travels beside it.

    ``start_time_ticks`` is None only for SCOUT, which finds it. For STRIKE: ``sharer_pids`` are to be killed
    first, if they still share the memory; ``rescan`` looks for all sharers once more; ``spare_dump`` forbids the signal
    while the victim dumps core; ``can_release`` False: do not call process_mrelease. For ACCOUNT: ``memcg_directory``
    is whose charge to read, ``deep`` also looks for memory that nobody owns.
    """

    kind: JobKind
    pid: int
    start_time_ticks: int | None
    sharer_pids: tuple[int, ...] = ()
    rescan: bool = False
    spare_dump: bool = False
    can_release: bool = True
    memcg_directory: str | None = None
    deep: bool = False


class Hello(NamedTuple):
    """A worker is ready. ``mrelease_errno``: EBADF when process_mrelease exists here.

    ``problem`` says why it cannot signal anybody at all: it is of no use then, and no other would be.
    """

    mrelease_errno: int
    is_locked: bool
    is_realtime: bool
    problem: str | None = None


class Scouted(NamedTuple):
    """Answer to SCOUT; ``scouting`` is None when no such process is seen, ``problem`` says what stood in the way."""

    scouting: Scouting | None
    problem: str | None = None


class Struck(NamedTuple):
    """Answer to STRIKE. Times are CLOCK_MONOTONIC in ns.

    ``signal_errno`` is None when no signal was sent (a core dump is spared). ``mrelease_errno`` is None when
    the call was not made. ``memory`` is what the address space held at ``verified_ns``; None: no thread has it.
    ``protected`` names sharers that may not be killed and turned up only now.
    """

    signal_errno: int | None
    mrelease_errno: int | None
    signal_ns: int
    released_ns: int
    verified_ns: int
    memory: VictimMemory | None
    is_dumping_core: bool
    sharers_killed: tuple[Identity, ...] = ()
    protected: tuple[int, ...] = ()


class Probed(NamedTuple):
    """Answer to PROBE."""

    memory: VictimMemory | None


class Accounted(NamedTuple):
    """Answer to ACCOUNT; ``holders`` names processes that stand in a call on the victim's memory."""

    memory: VictimMemory | None
    charged: ChargedMemory
    holders: tuple[str, ...] = ()


class Helped(NamedTuple):
    """Answer to HELP: what was done, and what was not permitted, in words."""

    done: tuple[str, ...]
    refused: tuple[str, ...]


class Inquired(NamedTuple):
    """Answer to INQUEST."""

    threads: tuple[ThreadReport, ...]


class SharersPart(NamedTuple):
    """A part of a long list of sharers, sent before the Scouted it belongs to."""

    sharers: tuple[Sharer, ...]


REPORT_OF_JOB: Mapping[JobKind, type] = MappingProxyType(
    {
        JobKind.SCOUT: Scouted,
        JobKind.STRIKE: Struck,
        JobKind.PROBE: Probed,
        JobKind.ACCOUNT: Accounted,
        JobKind.HELP: Helped,
        JobKind.INQUEST: Inquired,
    }
)

Report = Hello | Scouted | Struck | Probed | Accounted | Helped | Inquired
