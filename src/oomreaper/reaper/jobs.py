"""What a worker can be asked, and what it answers. Pure; ``wire`` writes both on a socket.

Everything that touches a victim is a job, so that whatever it blocks on blocks a worker, which can be replaced:

========= ==========================================================================================
SCOUT     look at a target before the decision: identity, memory, who shares it, may we signal it
STRIKE    signal it and all who share its memory, process_mrelease, read what is left; in this order
PROBE     read what its address space holds now
ACCOUNT   read what is charged for it now; ``deep`` also looks for memory that nobody owns, and who pins it
HELP      help a killed victim to leave: out of a v1 freezer or throttled group, oom_score_adj 1000
INQUEST   where each of its threads stands, for the report when it is given up
PROFILE   who some processes are: program, command line, control group, their owners' wishes
KILL_UNIT signal all who are to die together with a victim: a group, a session, a control group
RECLAIM   have the kernel move memory out of a control group, or of one process
========= ==========================================================================================

The last three are side jobs: they serve no victim, so they carry an ``order`` and wait until victims are served.
A look that the kernel refused (no memory, no descriptor) is answered with CouldNotLook, whatever was asked.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.process import Scouting, Sharer, ThreadReport
from oomreaper.model.sample import Profile

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
    PROFILE = "profile"
    KILL_UNIT = "kill unit"
    RECLAIM = "reclaim"


class ProfileOrder(NamedTuple):
    """Whom to look at. ``with_cmdline`` False leaves out the command line, which waits for mmap_lock."""

    lives: tuple[Identity, ...]
    with_cmdline: bool = True


class UnitOrder(NamedTuple):
    """Whom to signal: ``lives``, and all others who are found in the same unit while that is done.

    The unit is the directory of a control group, a process group or a session; of the last two only processes that
    started at ``born_after_ticks`` or later (None: all) are looked for, and only in the control group
    ``within_directory`` and below it (None: anywhere). It is gone through until nobody new is found.
    """

    lives: tuple[Identity, ...]
    cgroup_directory: str | None = None
    process_group: int | None = None
    session: int | None = None
    born_after_ticks: int | None = None
    within_directory: str | None = None


class ReclaimOrder(NamedTuple):
    """How much, of the control group ``directory`` (v2), or of ``life``, whose pidfd travels with the job."""

    bytes_wanted: int
    directory: str | None = None
    life: Identity | None = None

    def describe_source(self) -> str:
        """Out of what, in words."""
        if self.directory is not None:
            return self.directory
        return "nothing" if self.life is None else f"process {self.life.pid}"


Order = ProfileOrder | UnitOrder | ReclaimOrder


class Job(NamedTuple):
    """One request; the victim's pidfd travels beside it.

    ``start_time_ticks`` is None only for SCOUT, which finds it. For STRIKE: ``sharers`` are to be killed first, if they
    still share the memory (where the victim has gone: if they hold half of ``held_bytes``, what it held before); the
    last ``killed_count`` of them were killed by an attempt before, and share it for as long as they hold any;
    ``can_wait``: the victim is spared this time if one of them could not be looked at; ``rescan`` looks for all sharers
    once more; ``spare_dump`` forbids the signal while the victim dumps core; ``can_release`` False: do not call
    process_mrelease. For ACCOUNT: ``memcg_directory`` is whose charge to read, ``deep`` also looks for memory that
    nobody owns, and for who began at ``looked_ns`` or later and holds about ``held_bytes``. Side jobs have an
    ``order``; their ``pid`` is 0, and no pidfd travels with them but that of a RECLAIM from one process.
    """

    kind: JobKind
    pid: int
    start_time_ticks: int | None
    sharers: tuple[Identity, ...] = ()
    rescan: bool = False
    spare_dump: bool = False
    can_release: bool = True
    memcg_directory: str | None = None
    deep: bool = False
    can_wait: bool = False
    held_bytes: int = 0
    killed_count: int = 0
    looked_ns: int | None = None
    order: Order | None = None


class Hello(NamedTuple):
    """A worker is ready. ``mrelease_errno``: EBADF when process_mrelease exists here.

    ``problem`` says why it cannot signal anybody at all: it is of no use then, and no other would be.
    """

    mrelease_errno: int
    is_locked: bool
    is_realtime: bool
    problem: str | None = None


class Scouted(NamedTuple):
    """Answer to SCOUT; ``scouting`` is None when no such process is seen, ``problem`` says what stood in the way.

    ``needs_permission``: other rights would change that; otherwise another look may.
    """

    scouting: Scouting | None
    problem: str | None = None
    needs_permission: bool = False


class Struck(NamedTuple):
    """Answer to STRIKE. Times are CLOCK_MONOTONIC in ns.

    ``signal_errno`` is None when no signal was sent (a core dump is spared, or somebody was missed).
    ``mrelease_errno`` is None when the call was not made. ``memory`` is what the address space held at ``verified_ns``;
    None: no thread has it, or, where ``memory_problem`` says why, it could not be read: then nothing is verified.
    ``before`` is what it held right before the signal; None: not seen. ``protected`` names sharers that may not be
    killed and turned up only now, ``missed`` those that could not be looked at: nothing is known of them.
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
    memory_problem: str | None = None
    before: VictimMemory | None = None
    missed: tuple[int, ...] = ()


class Probed(NamedTuple):
    """Answer to PROBE."""

    memory: VictimMemory | None


class Accounted(NamedTuple):
    """Answer to ACCOUNT; ``holders`` names processes that stand in a call on the victim's memory.

    ``newcomers`` names those that were not there when the victim was looked at and hold as much as it did: one of them
    may share its memory.
    """

    memory: VictimMemory | None
    charged: ChargedMemory
    holders: tuple[str, ...] = ()
    newcomers: tuple[str, ...] = ()


class Helped(NamedTuple):
    """Answer to HELP: what was done, and what was not permitted, in words."""

    done: tuple[str, ...]
    refused: tuple[str, ...]


class Inquired(NamedTuple):
    """Answer to INQUEST."""

    threads: tuple[ThreadReport, ...]


class ProfileRow(NamedTuple):
    """Who one life is; ``profile`` None: it is over."""

    identity: Identity
    profile: Profile | None


class Profiled(NamedTuple):
    """Answer to PROFILE."""

    rows: tuple[ProfileRow, ...]


class UnitKilled(NamedTuple):
    """Answer to KILL_UNIT. ``refused`` says in words who was left out, and why; whoever had gone is in neither.

    ``killed_count`` counts all; ``killed`` names the first of them. ``passes``: how often the unit was gone through.
    """

    killed: tuple[Identity, ...]
    refused: tuple[str, ...]
    passes: int
    killed_count: int


class Reclaimed(NamedTuple):
    """Answer to RECLAIM: how many bytes the kernel was asked for, of ``what``; ``problem``: what stood in the way.

    ``bytes_moved`` is how much less the process ``life`` holds now; None where a group was asked: its counters tell.
    """

    bytes_asked: int
    what: str
    problem: str | None = None
    bytes_moved: int | None = None
    life: Identity | None = None

    def describe(self) -> str:
        """In words."""
        asked = f"the kernel was asked to move {self.bytes_asked >> 20} MiB out of {self.what}"
        if self.bytes_moved is not None:
            asked += f", and {self.bytes_moved >> 20} MiB went"
        return asked if self.problem is None else f"{asked}: {self.problem}"


class CouldNotLook(NamedTuple):
    """Answer to any job of which nothing was done, since the kernel refused what it takes; the worker goes on."""

    problem: str


class ProfilesPart(NamedTuple):
    """A part of a long answer to PROFILE, sent before the Profiled it belongs to."""

    rows: tuple[ProfileRow, ...]


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
        JobKind.PROFILE: Profiled,
        JobKind.KILL_UNIT: UnitKilled,
        JobKind.RECLAIM: Reclaimed,
    }
)

Report = (
    Hello | Scouted | Struck | Probed | Accounted | Helped | Inquired | Profiled | UnitKilled | Reclaimed | CouldNotLook
)
