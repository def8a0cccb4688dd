"""All settings, in one table: what each is called, how it is read, its default, and what it means.

From this table are made: the checking of a file (``schema``), the defaults (``compile``), the manual page
oomreaper.toml(5) (``tools/write_settings_page.py``) and ``oomreaper check --print-defaults``. A setting that is not in
here is an unknown key, and one without a meaning or an example fails the tests: nothing can be undocumented.

Defaults stand here as a user would write them, and go through the same readers as what users write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.config import values
from oomreaper.model.plan import KillUnit, MatchField, Metric, StepKind

if TYPE_CHECKING:
    from collections.abc import Callable

_MS, _S, _H = 1_000_000, 1_000_000_000, 3_600_000_000_000


class Form(NamedTuple):
    """How a setting is written; ``words`` says it to people.

    ``read`` reads the value, or each element when ``is_list``. With ``fields`` each element is a table of those
    settings, and ``read`` gets the table with every one of them read.
    """

    words: str
    read: Callable[[object], object]
    is_list: bool = False
    fields: tuple[Setting, ...] = ()
    at_least_one: bool = False


class Setting(NamedTuple):
    """One setting. ``default`` is a TOML value, None when there is none; ``example`` is TOML text."""

    key: str
    form: Form
    default: object
    meaning: str
    example: str
    is_required: bool = False


class Table(NamedTuple):
    """One table of the file; ``is_array`` is written ``[[name]]`` and may come several times."""

    name: str
    settings: tuple[Setting, ...]
    meaning: str
    is_array: bool = False

    @property
    def header(self) -> str:
        """As it is written in the file."""
        return f"[[{self.name}]]" if self.is_array else f"[{self.name}]"


def _glob(field: MatchField, meaning: str, example: str) -> Setting:
    return Setting(field.value, Form("a pattern", values.read_pattern(field)), None, meaning, example)


def _regex(field: MatchField, example: str) -> Setting:
    meaning = f"The same as a regular expression (Python's), searched for anywhere in the {_LOOKS_AT[field]}."
    return Setting(
        f"{field.value}_regex", Form("a regular expression", values.read_regex(field)), None, meaning, example
    )


_LOOKS_AT = {
    MatchField.COMM: "name",
    MatchField.EXE: "path",
    MatchField.CMDLINE: "command line",
    MatchField.UNIT: "unit's name",
    MatchField.CGROUP: "cgroup's path",
    MatchField.CONTAINER: "container's id",
}

MATCHERS = (
    _glob(
        MatchField.COMM,
        "The name of the process, as ps and top show it. The kernel keeps 15 bytes of it, so a longer pattern never "
        "matches, and any process can call itself so.",
        '"sshd"',
    ),
    _regex(MatchField.COMM, '"^(Web|Isolated)"'),
    _glob(
        MatchField.EXE,
        "The path of the program that it runs. A pattern without a slash looks at the last part of the path. For a "
        "script this is the interpreter. A program that was replaced since it was started still matches.",
        '"/usr/lib/postgresql/*/bin/postgres"',
    ),
    _regex(MatchField.EXE, '"^/opt/"'),
    _glob(
        MatchField.CMDLINE,
        "The whole command line, arguments joined by single spaces, so most patterns want a * at both ends.",
        '"java *-jar important.jar*"',
    ),
    _regex(MatchField.CMDLINE, '"--type=renderer"'),
    Setting(
        "user",
        Form("a user's name or number", values.read_user),
        None,
        "Its effective user. A name must be known on this machine; it is looked up when the file is read.",
        '"nobody"',
    ),
    _glob(
        MatchField.UNIT,
        "The systemd unit that it belongs to. A plain name without a suffix is a service.",
        '"docker.service"',
    ),
    _regex(MatchField.UNIT, r'"^session-\\d+\\.scope$"'),
    _glob(
        MatchField.CGROUP,
        "The path of its control group, as /proc/PID/cgroup has it. A * also stands for slashes.",
        '"/system.slice/*"',
    ),
    _regex(MatchField.CGROUP, '"/kubepods/"'),
    _glob(
        MatchField.CONTAINER,
        "The id of its container (Docker, Podman, containerd, CRI-O). The first characters of an id are enough.",
        '"3f4a9c01d2e7"',
    ),
    _regex(MatchField.CONTAINER, '"^(3f4a|77b0)"'),
)

_MATCHER_LIST = Form("a list of matchers", values.make_matcher, is_list=True, fields=MATCHERS)
_COMMAND = Form("a list: the program's absolute path, then its arguments", values.read_word_of_command, is_list=True)

RULE = Table(
    "rule",
    (
        Setting(
            "name",
            Form("a name", values.read_name),
            None,
            "What events, records and 'oomreaper explain' call the rule. Without it: rule-1, rule-2 and so on.",
            '"low"',
        ),
        Setting(
            "scope",
            Form('"machine", or a pattern over cgroup paths', values.read_scope),
            "machine",
            "Where the rule looks. With a pattern it looks at each control group that matches and has a memory limit; "
            "per cent are then of that limit, and victims are taken from that group alone.",
            '"/system.slice/ci-*"',
        ),
        Setting(
            "when",
            Form("a list of conditions", values.read_condition, is_list=True, at_least_one=True),
            None,
            "All of these must hold at the same time. For alternatives write several rules.",
            '["mem_available < 4%", "swap_free < 10%"]',
            is_required=True,
        ),
        Setting(
            "for",
            Form("a time", values.read_duration(0, 24 * _H)),
            "0s",
            "For how long they must have held without a break before the first step is taken.",
            '"2s"',
        ),
        Setting(
            "recovered",
            Form("a list of conditions", values.read_recovery, is_list=True),
            [],
            "When all of these hold, the ladder begins anew at the next shortage. Until then the rule goes on, also "
            "when its conditions no longer hold. They point the other way round than those of 'when'. Without any: "
            "as soon as one condition of 'when' no longer holds.",
            '["mem_available > 8%"]',
        ),
        Setting(
            "then",
            Form("a list of steps", values.read_step, is_list=True, at_least_one=True),
            None,
            "The ladder: what is done, one step after the other, until enough memory is back.",
            '["warn", "terminate", "kill after 10s or mem_available < 2%"]',
            is_required=True,
        ),
    ),
    "When to act, and how. Several rules are alternatives; each has its own ladder. With no rule in the file the "
    "default rules below are in force; with one, they are not.",
    is_array=True,
)

VICTIMS = Table(
    "victims",
    (
        Setting(
            "never",
            _MATCHER_LIST,
            [],
            "Who is never killed, whatever happens. Kernel threads, pid 1, oomreaper itself and processes with "
            "oom_score_adj -1000 need not be named.",
            '[{comm = "sshd"}, {exe = "/usr/bin/postgres"}, {user = "root", comm = "x*"}]',
        ),
        Setting(
            "avoid",
            _MATCHER_LIST,
            [],
            "Who is killed only when there is nobody else whose memory is worth it.",
            '[{unit = "gdm.service"}, {cgroup = "/user.slice/*/session.slice/*"}]',
        ),
        Setting(
            "prefer",
            _MATCHER_LIST,
            [],
            "Who is to be killed rather than others. It still has to be worth it: a small process is not killed "
            "before a big one only because it is preferred.",
            '[{cmdline_regex = "--type=renderer"}, {user = "nobody"}]',
        ),
        Setting(
            "unit",
            Form("one of " + ", ".join(f'"{unit}"' for unit in KillUnit), values.read_kill_unit),
            "process",
            "What dies together with the process that was chosen: nothing else, its process group, its session, or "
            "its control group. Processes that share its memory always do.",
            '"process"',
        ),
        Setting(
            "smallest",
            Form("a share of the scope's memory", values.read_percent),
            "1%",
            "Who gives back less than this is not worth a kill.",
            '"1%"',
        ),
        Setting(
            "honour_oom_group",
            Form("true or false", values.read_flag),
            True,
            "Whether a control group with memory.oom.group set is killed as a whole, as the kernel does.",
            "true",
        ),
        Setting(
            "honour_xattrs",
            Form("true or false", values.read_flag),
            True,
            "Whether the extended attributes user.oomd_avoid and user.oomd_omit of control groups count (systemd's "
            "ManagedOOMPreference=), where their owner may be trusted.",
            "true",
        ),
    ),
    "Whom to choose. A matcher is a table with one or more of the keys under MATCHERS; all of them must match.",
)

KILL = Table(
    "kill",
    (
        Setting(
            "critical",
            Form("a condition", values.read_condition),
            "mem_available < 2%",
            "While it holds, another victim is taken before the memory of the last one is back.",
            '"mem_available < 1%"',
        ),
        Setting(
            "attempts",
            Form("a whole number", values.read_count(1, 100)),
            10,
            "How often a victim is reaped before it is given up, left aside, and the next one is taken.",
            "10",
        ),
        Setting(
            "attempt",
            Form("a time", values.read_duration(10 * _MS, 10 * _S)),
            "100ms",
            "How long one attempt may take while the victim's memory does not move; also the time between two.",
            '"100ms"',
        ),
        Setting(
            "timeout",
            Form("a time", values.read_duration(1 * _S, 1 * _H)),
            "30s",
            "How long after the signal a victim is given up, even if its memory still moves.",
            '"30s"',
        ),
        Setting(
            "coredump",
            Form('"abort" or "wait"', values.read_choice("abort", "wait")),
            "abort",
            "What to do with a victim that is dumping core: cut the dump short, or let it finish within the time-out.",
            '"abort"',
        ),
    ),
    "How a victim is killed and its memory freed.",
)

HOOKS = Table(
    "hooks",
    (
        Setting(
            "pre_kill",
            _COMMAND,
            [],
            "Run before a victim is signalled, to let it save what it can. The kill waits for it, at most for "
            "pre_kill_timeout. There is no shell. The victim is described in its environment (OOMREAPER_PID, "
            "OOMREAPER_COMM, OOMREAPER_RULE and others) and, as JSON, on its standard input.",
            '["/usr/local/sbin/before-kill", "--quick"]',
        ),
        Setting(
            "pre_kill_timeout",
            Form("a time", values.read_duration(1 * _MS, 10 * _S)),
            "200ms",
            "How long a kill may wait for pre_kill.",
            '"200ms"',
        ),
        Setting(
            "post_kill",
            _COMMAND,
            [],
            "Run after a victim was killed; nothing waits for it. It is told the same, and how the victim ended.",
            '["/usr/local/sbin/after-kill"]',
        ),
        Setting(
            "post_kill_timeout",
            Form("a time", values.read_duration(1 * _MS, 1 * _H)),
            "10s",
            "How long post_kill may run before it is ended.",
            '"10s"',
        ),
    ),
    "Programs of yours. They are run by a process of their own, never by the one that watches.",
)

WATCH = Table(
    "watch",
    (
        Setting(
            "within",
            Form("the path of a control group", values.read_cgroup_path),
            "",
            "Watch this group instead of the machine: its memory limit stands for the machine's memory, and only its "
            "members are victims. Empty: the machine.",
            '"/system.slice/ci.service"',
        ),
        Setting(
            "events",
            Form("true, false, or an absolute path", values.read_socket_path),
            True,
            "The socket on which events are told. true: /run/oomreaper/events.sock for root, oomreaper/events.sock in "
            "$XDG_RUNTIME_DIR for other users (none where that is not set). false: no socket.",
            '"/run/oomreaper/events.sock"',
        ),
    ),
    "Where to look, and where to tell.",
)

TABLES = (RULE, VICTIMS, KILL, HOOKS, WATCH)

# What the words of conditions and steps mean. A test holds these tables against the enums.
METRIC_MEANINGS = {
    Metric.MEM_AVAILABLE: "memory that can be taken without swapping (MemAvailable and what a ZFS cache would give "
    "back; in a control group: what is left to its limit, plus its page cache)",
    Metric.SWAP_FREE: "swap that is free; 0 % on a machine without any",
    Metric.PSI_MEMORY_SOME: "share of the time in which at least one task waited for memory (pressure stall "
    "information); needs 'over' and a time",
    Metric.PSI_MEMORY_FULL: "share of the time in which all tasks waited for memory at once; needs 'over' and a time",
    Metric.MEMORY_CURRENT: "what is charged to a control group; per cent of its limit",
    Metric.TIME_TO_EXHAUSTION: "the time until memory and swap are used up, at the present rate",
    Metric.ZRAM_USED: "what compressed swap (zram) takes of the memory",
}
STEP_MEANINGS = {
    StepKind.WARN: "tell everybody who listens that memory is short; nothing is touched",
    StepKind.RECLAIM: "have the kernel move memory out that was not used for long",
    StepKind.TERMINATE: "choose a victim and ask it to end (SIGTERM)",
    StepKind.KILL: "kill the one that was asked to end, or choose one, and free its memory at once",
}


def find_table(name: str) -> Table | None:
    """The table of that name."""
    return next((table for table in TABLES if table.name == name), None)
