"""A scenario: one machine, who runs on it, who is to blame, who must live, and what must come of it. TOML to values.

Every fault of a file is named by its key path, not only the first, as those of a settings file are; the readers of the
values are those of the settings file (``oomreaper.config.values``), so a time or a share looks alike in both.

An *actor* is one program and its processes. Its role says whether a killer may take it: a ``culprit`` makes the
shortage or stands in its way, and whoever kills an ``innocent`` has done harm. Whoever is no actor (the machine's own
services, the probe's user) is innocent. Processes are told apart by the name that /proc shows (comm), which is the
actor's; ``children`` gives the roles of other names within an actor, as of a browser's tabs. A ``stuck`` actor says the
pids of its victims when it is ready: those are the culprits, and who holds them is not.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.seam import MachineSpec
from oomreaper.config.source import read_source
from oomreaper.config.values import (
    WrongValueError,
    guess_word,
    read_choice,
    read_count,
    read_duration,
    read_flag,
    read_percent,
    show_path,
    show_text,
    show_value,
)
from oomreaper.errors import ConfigError, Fault, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from oomreaper.config.source import Source

    _Path = tuple[str | int, ...]

FOLDER = Path(__file__).parent / "scenarios"
_SECOND = 1_000_000_000
# Emulation is slow, and the whole grid has hundreds of runs: one that takes longer than this shows nothing more.
_LONGEST_NS = 120 * _SECOND
# A guest has never more than 2 GiB; below 256 MiB the machine's own programs are the shortage.
_LEAST_MIB, _MOST_MIB = 256, 2048
# What a service manager and its services take that the small image does not have: the scenario's own share is the same.
FULL_IMAGE_MIB = 192
# include/linux/sched.h: TASK_COMM_LEN is 16 with its NUL.
_LONGEST_COMM = 15
_COMM = re.compile(rf"[a-z][a-z0-9-]{{0,{_LONGEST_COMM - 1}}}")
_GROUP_NAME = re.compile(r"[A-Za-z0-9_.@-]+(/[A-Za-z0-9_.@-]+)*")


class Role(enum.StrEnum):
    """Whether a killer may take it."""

    CULPRIT = "culprit"
    INNOCENT = "innocent"


class Program(enum.StrEnum):
    """What an actor runs: the lab's own workloads, a victim of the tests that cannot die, or any command."""

    WORKLOAD = "workload"
    STUCK = "stuck"
    COMMAND = "command"


class Actor(NamedTuple):
    """One program. ``start_ns`` None: it is there, and has said that it is ready, before the shortage begins."""

    name: str
    role: Role
    program: Program
    arguments: tuple[str, ...]
    start_ns: int | None = None
    children: Mapping[str, Role] = {}
    survives_term: bool = False
    oom_score_adj: int = 0
    nice: int = 0
    user: int | None = None
    group: str | None = None


class Group(NamedTuple):
    """A control group to be made, by its path below the root, and what is written to its files."""

    name: str
    files: Mapping[str, str]


class Shortage(NamedTuple):
    """Where memory is short (None: the machine), below which share that begins, and above which it is back.

    With swap, what is free of it must be below the same share, too, for the machine to be short.
    """

    group: str | None = None
    below_percent: float = 10.0
    back_percent: float = 15.0


class Expectation(NamedTuple):
    """What must and must not come of it. No innocent may be killed in any scenario."""

    is_kill_wanted: bool = True
    least_kills: int = 1
    most_kills: int | None = None


class Scenario(NamedTuple):
    """A whole file. ``is_decisive``: it is also run on the older kernels.

    ``machine`` has the least image that has all it needs, and its memory there.
    """

    name: str
    about: str
    machine: MachineSpec
    actors: tuple[Actor, ...]
    groups: tuple[Group, ...]
    shortage: Shortage
    expectation: Expectation
    duration_ns: int
    is_decisive: bool = False
    is_in_smoke: bool = False

    def on(self, kernel: str, image: str) -> MachineSpec:
        """The machine with that kernel, of that image."""
        more_mib = FULL_IMAGE_MIB if image == "full" and self.machine.image == "small" else 0
        return self.machine._replace(kernel=kernel, image=image, memory_mib=self.machine.memory_mib + more_mib)

    def fits(self, image: str) -> bool:
        """Whether that image has all that it needs: the full one has whatever the small one has."""
        return image in (self.machine.image, "full")

    def role_of(self, comm: str) -> tuple[str | None, Role]:
        """To which actor a process of that name belongs, and its role; of nobody's it is innocent."""
        for actor in self.actors:
            if comm == actor.name and actor.program is not Program.STUCK:
                return actor.name, actor.role
            if comm in actor.children:
                return actor.name, actor.children[comm]
        return None, Role.INNOCENT


def names() -> tuple[str, ...]:
    """The scenarios of the lab."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_scenario(name: str) -> Scenario:
    """One of the lab's scenarios by its name, or one in a file.

    Raises:
        UsageError: It is neither.
        ConfigError: The file has faults; all of them are in it.
    """
    if "/" in name or name.endswith(".toml"):
        return read_scenario(read_source(name), name=Path(name).stem)
    if name not in names():
        meant = guess_word(name, names())
        hint = f'; did you mean "{meant}"?' if meant else ""
        raise UsageError(f"there is no scenario {show_value(name)}{hint}; known are {', '.join(names())}")
    return read_scenario(read_source(str(FOLDER / f"{name}.toml")), name=name)


def read_scenario(source: Source, *, name: str) -> Scenario:
    """What a parsed file says.

    Raises:
        ConfigError: It has faults; all of them are in it.
    """
    return _Reader(source, name).read()


# -- values ------------------------------------------------------------------------------------------------


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or len(raw) > 400:  # noqa: PLR2004 - some lines, not a novel
        raise WrongValueError(f"found {show_value(raw)}", "allowed is a short text")
    return raw


def _comm(raw: object) -> str:
    if not isinstance(raw, str) or not _COMM.fullmatch(raw):
        raise WrongValueError(
            f"found {show_value(raw)}",
            f"allowed are small letters, digits and -, at most {_LONGEST_COMM}: /proc shows no more of a name",
        )
    return raw


def _group_name(raw: object) -> str:
    if not isinstance(raw, str) or not _GROUP_NAME.fullmatch(raw) or ".." in raw:
        raise WrongValueError(f"found {show_value(raw)}", "allowed is a path below the root of the groups: lab/unit")
    return raw


def _words(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(word, str) and word for word in raw):
        raise WrongValueError(f"found {show_value(raw)}", "allowed is a list of words in quotes")
    return tuple(raw)


def _files(raw: object) -> Mapping[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(text, str) and "/" not in name for name, text in raw.items()):
        raise WrongValueError(f"found {show_value(raw)}", 'allowed is a table of files: {"memory.max" = "200M"}')
    return raw


def _children(raw: object) -> Mapping[str, Role]:
    if not isinstance(raw, dict):
        raise WrongValueError(f"found {show_value(raw)}", 'allowed is a table of roles: {tab = "innocent"}')
    return {_comm(name): Role(_role(role)) for name, role in raw.items()}


_role = read_choice(*(role.value for role in Role))
_time = read_duration(0, _LONGEST_NS)


class _Field(NamedTuple):
    key: str
    read: Callable[[object], Any]
    is_required: bool = False


_ROOT = (
    _Field("about", _text, is_required=True),
    _Field("decisive", read_flag),
    _Field("smoke", read_flag),
    _Field("duration", read_duration(_SECOND, _LONGEST_NS), is_required=True),
)
_MACHINE = (
    _Field("image", read_choice("small", "full"), is_required=True),
    _Field("memory_mib", read_count(_LEAST_MIB, _MOST_MIB), is_required=True),
    _Field("cpus", read_count(1, 2)),
    _Field("zram_mib", read_count(0, _MOST_MIB)),
    _Field("swap_mib", read_count(0, _MOST_MIB)),
)
_ACTOR = (
    _Field("name", _comm, is_required=True),
    _Field("role", _role, is_required=True),
    _Field("program", read_choice(*(program.value for program in Program))),
    _Field("arguments", _words, is_required=True),
    _Field("start", _time),
    _Field("children", _children),
    _Field("survives_term", read_flag),
    _Field("oom_score_adj", read_count(-1000, 1000)),
    _Field("nice", read_count(-20, 19)),
    _Field("user", read_count(0, 65_534)),
    _Field("group", _group_name),
)
_GROUP = (_Field("name", _group_name, is_required=True), _Field("files", _files))
_SHORTAGE = (
    _Field("group", _group_name),
    _Field("below", read_percent),
    _Field("back", read_percent),
)
_EXPECT = (
    _Field("kill", read_flag),
    _Field("least_kills", read_count(1, 1000)),
    _Field("most_kills", read_count(1, 1000)),
)
_TABLES = ("machine", "actor", "group", "shortage", "expect")


# -- reading -----------------------------------------------------------------------------------------------


class _Reader:
    """Reads one file; faults are gathered on the way."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name
        self._faults: list[Fault] = []

    def read(self) -> Scenario:
        document = self._source.document
        root = self._fields(document, _ROOT, (), also=_TABLES)
        machine = self._table("machine", _MACHINE, is_required=True)
        actors = [row for _, row in self._rows("actor", _ACTOR)]
        groups = [row for _, row in self._rows("group", _GROUP)]
        shortage = self._table("shortage", _SHORTAGE)
        expect = self._table("expect", _EXPECT)
        if not document.get("actor"):
            self._fault(("actor",), "it is missing", "a scenario must have actors, each begun by [[actor]]")
        self._check_names(actors, groups, shortage)
        self._check_sense(root, actors, shortage, expect)
        if self._faults:
            raise ConfigError(tuple(sorted(self._faults, key=lambda fault: fault.line or 0)))
        return Scenario(
            name=self._name,
            about=root["about"],
            machine=MachineSpec(
                image=machine["image"],
                kernel="newest",
                memory_mib=machine["memory_mib"],
                cpus=machine.get("cpus", 2),
                zram_mib=machine.get("zram_mib", 0),
                swap_mib=machine.get("swap_mib", 0),
            ),
            actors=tuple(_make_actor(row) for row in actors),
            groups=tuple(Group(row["name"], row.get("files", {})) for row in groups),
            shortage=Shortage(
                shortage.get("group"),
                shortage.get("below", Shortage().below_percent),
                shortage.get("back", Shortage().back_percent),
            ),
            expectation=Expectation(expect.get("kill", True), expect.get("least_kills", 1), expect.get("most_kills")),
            duration_ns=root["duration"],
            is_decisive=root.get("decisive", False),
            is_in_smoke=root.get("smoke", False),
        )

    # -- shapes --------------------------------------------------------------------------------------------

    def _table(self, key: str, fields: tuple[_Field, ...], *, is_required: bool = False) -> dict[str, Any]:
        raw = self._source.document.get(key)
        if raw is None:
            if is_required:
                self._fault((key,), "it is missing", f"a scenario must have a table [{key}]")
            return {}
        if not isinstance(raw, dict):
            self._fault((key,), f"found {show_value(raw)}", f"allowed is a table, [{key}]")
            return {}
        return self._fields(raw, fields, (key,))

    def _rows(self, key: str, fields: tuple[_Field, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        raw = self._source.document.get(key, [])
        if not isinstance(raw, list):
            self._fault((key,), f"found {show_value(raw)}", f"allowed are tables, each begun by [[{key}]]")
            return
        for position, row in enumerate(raw):
            if isinstance(row, dict):
                yield position, self._fields(row, fields, (key, position))
            else:
                self._fault((key, position), f"found {show_value(row)}", f"allowed is a table, [[{key}]]")

    def _fields(
        self, raw: Mapping[str, object], fields: tuple[_Field, ...], path: _Path, *, also: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        known = (*(field.key for field in fields), *also)
        misspelt = set()
        for key in raw:
            if key not in known:
                meant = guess_word(key, known)
                misspelt.add(meant)
                self._fault((*path, key), "there is no such key", f"known are {', '.join(known)}", meant)
        read = {}
        for field in fields:
            if field.key not in raw:
                if field.is_required and field.key not in misspelt:
                    self._fault((*path, field.key), "it is missing", f"{show_path(path) or 'a scenario'} must have it")
                continue
            try:
                read[field.key] = field.read(raw[field.key])
            except WrongValueError as error:
                self._fault((*path, field.key), error.found, error.allowed, error.suggestion)
        return read

    # -- what one key says of another ----------------------------------------------------------------------

    def _check_names(
        self, actors: list[dict[str, Any]], groups: list[dict[str, Any]], shortage: Mapping[str, Any]
    ) -> None:
        taken: list[str] = []
        for position, row in enumerate(actors):
            own = [name for name in (row.get("name"), *row.get("children", {})) if name]
            for name in own:
                if name in taken:
                    self._fault(
                        ("actor", position, "name"),
                        f'found "{show_text(name)}" again',
                        "each actor and kind of child has a name of its own",
                    )
            taken += own
        made = [row["name"] for row in groups if "name" in row]
        for position, row in enumerate(actors):
            self._need_group(row.get("group"), made, ("actor", position, "group"))
        self._need_group(shortage.get("group"), made, ("shortage", "group"))

    def _need_group(self, name: str | None, made: list[str], path: _Path) -> None:
        if name is not None and name not in made:
            self._fault(
                path, f'found "{show_text(name)}"', "allowed is a [[group]] of the file", guess_word(name, made)
            )

    def _check_sense(
        self,
        root: Mapping[str, Any],
        actors: list[dict[str, Any]],
        shortage: Mapping[str, Any],
        expect: Mapping[str, Any],
    ) -> None:
        usual = Shortage()
        below, back = shortage.get("below", usual.below_percent), shortage.get("back", usual.back_percent)
        if back <= below:
            self._fault(("shortage", "back"), f"found {back:g}%", f"allowed is more than below, which is {below:g}%")
        if expect.get("most_kills", expect.get("least_kills", 1)) < expect.get("least_kills", 1):
            self._fault(
                ("expect", "most_kills"), f"found {expect['most_kills']}", "allowed is no less than least_kills"
            )
        if not expect.get("kill", True) and ("least_kills" in expect or "most_kills" in expect):
            self._fault(("expect", "kill"), "found false", "allowed is no number of kills where none is wanted")
        are_all_read = actors and all("role" in row for row in actors)
        roles = {role for row in actors for role in (row.get("role"), *row.get("children", {}).values())}
        if expect.get("kill", True) and are_all_read and Role.CULPRIT not in roles:
            self._fault(("actor",), "found no culprit", "somebody must be there that may be killed")
        for position, row in enumerate(actors):
            if row.get("start", 0) >= root.get("duration", _LONGEST_NS):
                self._fault(("actor", position, "start"), "found a start after the end", "it must be within duration")

    def _fault(self, path: _Path, found: str, allowed: str, suggestion: str = "") -> None:
        line = self._source.find_line(path, found)
        self._faults.append(Fault(self._source.file, show_path(path), line, found, allowed, suggestion))


def _make_actor(row: Mapping[str, Any]) -> Actor:
    rest = {
        key: row[key] for key in ("children", "survives_term", "oom_score_adj", "nice", "user", "group") if key in row
    }
    return Actor(
        name=row["name"],
        role=Role(row["role"]),
        program=Program(row.get("program", Program.WORKLOAD.value)),
        arguments=row["arguments"],
        start_ns=row.get("start"),
        **rest,
    )
