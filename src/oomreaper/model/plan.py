"""The plan: a configuration with nothing left to look up. Made by ``config``, read by the watcher, never changed.

Names are resolved (users are uids), patterns are regular expressions, sizes are bytes or per cent, times are ns.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

MACHINE = "machine"  # the scope of a rule that looks at the whole machine (or at what stands for it)


class Metric(enum.StrEnum):
    """What a condition reads, of the scope it is evaluated in."""

    MEM_AVAILABLE = "mem_available"  # what can still be taken without swapping; per cent of the scope's memory
    SWAP_FREE = "swap_free"  # per cent of all swap; with no swap at all it is 0 %
    PSI_MEMORY_SOME = "psi_memory_some"  # share of the time in which at least one task waited for memory
    PSI_MEMORY_FULL = "psi_memory_full"  # share of the time in which all tasks waited for memory
    MEMORY_CURRENT = "memory_current"  # what is charged to a group; per cent of its limit
    TIME_TO_EXHAUSTION = "time_to_exhaustion"  # at the present rate, in seconds
    ZRAM_USED = "zram_used"  # what compressed swap takes; per cent of the machine's memory


class Unit(enum.StrEnum):
    """How a threshold is meant."""

    PERCENT = "%"
    BYTES = "bytes"
    SECONDS = "s"


class Condition(NamedTuple):
    """``metric`` below (or above) ``threshold``; ``window_ns`` is the time a pressure is averaged over, else None.

    ``text`` is how the user wrote it.
    """

    metric: Metric
    is_below: bool
    threshold: float
    unit: Unit
    window_ns: int | None
    text: str


class StepKind(enum.StrEnum):
    """What a step of a ladder does."""

    WARN = "warn"  # tell whoever listens
    RECLAIM = "reclaim"  # have the kernel move cold memory out
    TERMINATE = "terminate"  # choose a victim, and ask it to end (SIGTERM)
    KILL = "kill"  # choose a victim, or take the one that was asked, and kill and reap it


class Step(NamedTuple):
    """One step: due ``after_ns`` after the step before it was taken, or at once when ``or_when`` holds."""

    kind: StepKind
    after_ns: int
    or_when: Condition | None
    text: str


class Rule(NamedTuple):
    """When all of ``when`` have held for ``for_ns``, go up the ladder ``then`` until all of ``recovered`` hold.

    ``scope`` is MACHINE or a glob over cgroup paths: the rule then looks at each group it matches that has a limit,
    and its victims are members of that group.
    """

    name: str
    scope: str
    when: tuple[Condition, ...]
    for_ns: int
    recovered: tuple[Condition, ...]
    then: tuple[Step, ...]


class MatchField(enum.StrEnum):
    """What a matcher looks at."""

    COMM = "comm"  # the 15 bytes of the process's name
    EXE = "exe"  # the path of its program
    CMDLINE = "cmdline"  # its arguments, joined by spaces
    USER = "user"  # its uid; the pattern is that number
    UNIT = "unit"  # the systemd unit it belongs to
    CGROUP = "cgroup"  # the path of its control group
    CONTAINER = "container"  # the id of its container


class MatchTest(NamedTuple):
    """``field`` is matched by the regular expression ``regex`` (re.search); ``text`` is how the user wrote it."""

    field: MatchField
    regex: str
    text: str


class Matcher(NamedTuple):
    """All ``tests`` must match."""

    tests: tuple[MatchTest, ...]


class KillUnit(enum.StrEnum):
    """What dies together with the process that was chosen; its mm sharers always do."""

    PROCESS = "process"
    GROUP = "group"  # its process group
    SESSION = "session"
    CGROUP = "cgroup"


class Victims(NamedTuple):
    """Whom to choose. ``smallest_percent``: who gives back less of the scope's memory is not worth a kill."""

    never: tuple[Matcher, ...] = ()
    avoid: tuple[Matcher, ...] = ()
    prefer: tuple[Matcher, ...] = ()
    unit: KillUnit = KillUnit.PROCESS
    smallest_percent: float = 1.0
    honour_oom_group: bool = True
    honour_xattrs: bool = True


class Hooks(NamedTuple):
    """Programs that the clerk runs: argument lists, empty for none; absolute paths."""

    pre_kill: tuple[str, ...] = ()
    pre_kill_timeout_ns: int = 200_000_000
    post_kill: tuple[str, ...] = ()
    post_kill_timeout_ns: int = 10_000_000_000


class Plan(NamedTuple):
    """All that the watcher needs to know.

    ``critical`` is the floor below which it does not wait for one victim before it takes another. ``within`` is the
    cgroup path whose limit stands for the machine's and whose members are the only victims; None: the machine.
    ``events_path`` None: no socket. ``recompile`` is the command that prints a fresh plan, empty when there is no file;
    ``clerk`` the one that runs the hooks, empty when there are none.
    """

    rules: tuple[Rule, ...]
    victims: Victims
    critical: Condition
    hooks: Hooks = Hooks()
    within: str | None = None
    events_path: str | None = None
    attempts: int = 10
    attempt_ns: int = 100_000_000
    timeout_ns: int = 30_000_000_000
    spare_dump: bool = False
    config_path: str | None = None
    recompile: tuple[str, ...] = ()
    clerk: tuple[str, ...] = ()
