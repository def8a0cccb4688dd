"""A scenario file: TOML to a ``Setup``, with every fault of it named by its key path, not only the first.

Tables and keys are in ``scenario_format``. A value is read by the readers of the settings file (``config.values``), so
a duration, a flag, a choice look alike in both. What one key says of another (a gate that there is none of, more memory
than the machine has) is checked when all keys have been read. ``[watcher.settings]`` is a settings file within the
scenario, and checked as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.config.source import read_source
from oomreaper.config.values import (
    WrongValueError,
    guess_word,
    show_path,
    show_text,
    show_value,
)
from oomreaper.errors import ConfigError, Fault, UsageError
from oomreaper.sim.parameters import MS, Parameters
from oomreaper.sim.scenario import (
    EventSpec,
    GroupSpec,
    ProcessSpec,
    ProgramSpec,
    Scenario,
)
from oomreaper.sim.scenario_format import (
    ABOUT,
    DOES,
    MACHINE,
    PROCESS,
    TABLES,
    TARGETS,
    TOP,
    WATCHER,
    Field,
    program_fields,
    read_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from oomreaper.config.source import Source
    from oomreaper.model.plan import Plan

    _Path = tuple[str | int, ...]

BUILT_IN = Path(__file__).parent / "scenarios"
# A file with more faults than this is no scenario; the rest would only bury the first.
MOST_FAULTS = 100
# Where every process is a step of the watcher's look, more is no longer a small machine.
_MOST_PROCESSES = 5_000
# What must be left for the watermarks and the first fault: a machine that boots into a shortage shows nothing.
_SPARE_MIB = 16


class Setup(NamedTuple):
    """What a file says: the machine and who is on it.

    Of the watcher, where it runs: its plan (None: the defaults), and whether it has real-time priority.
    """

    scenario: Scenario
    about: str
    plan: Plan | None = None
    is_realtime: bool = True


def load_scenario(name: str) -> Setup:
    """A built-in scenario by its name, or the one in a file.

    Raises:
        UsageError: It is neither.
        ConfigError: The file has faults; all of them are in it.
    """
    if "/" not in name and not name.endswith(".toml"):
        if name not in names():
            meant = guess_word(name, names())
            hint = f'; did you mean "{meant}"?' if meant else ""
            raise UsageError(
                f"there is no built-in scenario {show_value(name)}{hint}; known are {', '.join(names())}, "
                "and a file ends in .toml"
            )
        return read_scenario(read_source(str(BUILT_IN / f"{name}.toml")), name=name)
    return read_scenario(read_source(name), name=Path(name).stem)


def names() -> tuple[str, ...]:
    """The built-in scenarios."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.toml")))


def read_scenario(source: Source, *, name: str) -> Setup:
    """What a parsed file says.

    Raises:
        ConfigError: It has faults; all of them are in it.
    """
    return _Reader(source, name).read()


# -- reading -----------------------------------------------------------------------------------------------


class _Written(NamedTuple):
    """One [[process]]: its place and keys, and the processes that it comes to."""

    position: int
    row: Mapping[str, Any]
    programs: tuple[ProgramSpec, ...]
    processes: tuple[ProcessSpec, ...]

    @property
    def name(self) -> str:
        return str(self.row.get("name", ""))


class _Reader:
    """Reads one file; faults are gathered on the way."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name
        self._document = source.document
        self._faults: list[Fault] = []

    def read(self) -> Setup:
        self._refuse_unknown(self._document, TOP, ())
        about = self._field(self._document, ABOUT, ()) or ""
        machine = self._table("machine", MACHINE, is_required=True)
        tables = {
            key: [row for _, row in self._rows(key, fields)] for key, fields in TABLES.items() if key != "process"
        }
        specs = list(self._processes())
        plan, is_realtime = self._watcher()
        self._check_names(tables, specs)
        self._check_memory(machine, specs)
        if self._faults:
            raise ConfigError(self._sorted_faults())
        scenario = Scenario(
            name=self._name,
            processes=tuple(process for spec in specs for process in spec.processes),
            parameters=_parameters(machine),
            events=tuple(EventSpec(row["at"] / MS, row["does"], row["target"]) for row in tables["event"]),
            groups={
                row["name"]: GroupSpec(row.get("limit_mib"), row.get("has_killer", True)) for row in tables["group"]
            },
            freezers=tuple(row["name"] for row in tables["freezer"]),
            cpu_groups={row["name"]: row["quota_percent"] for row in tables["cpu_group"]},
            kernel_mib=machine.get("kernel_mib", 64.0),
            cache_mib=machine.get("cache_mib", 64.0),
            recycles_pids=machine.get("recycles_pids", False),
        )
        return Setup(scenario, about, plan, is_realtime)

    # -- shapes --------------------------------------------------------------------------------------------

    def _table(self, key: str, fields: tuple[Field, ...], *, is_required: bool = False) -> dict[str, Any]:
        raw = self._document.get(key)
        if raw is None:
            if is_required:
                self._fault((key,), "it is missing", f"a scenario must have a table [{key}]")
            return {}
        if not isinstance(raw, dict):
            self._fault((key,), f"found {show_value(raw)}", f"allowed is a table, [{key}]")
            return {}
        return self._fields(raw, fields, (key,))

    def _rows(self, key: str, fields: tuple[Field, ...], *, also: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
        """Each table of an array, raw and read."""
        raw = self._document.get(key, [])
        if not isinstance(raw, list):
            self._fault((key,), f"found {show_value(raw)}", f"allowed is an array of tables, each begun by [[{key}]]")
            return
        for position, row in enumerate(raw):
            if isinstance(row, dict):
                yield row, self._fields(row, fields, (key, position), also=also)
            else:
                self._fault((key, position), f"found {show_value(row)}", f"allowed is a table, [[{key}]]")

    def _fields(
        self, raw: Mapping[str, object], fields: tuple[Field, ...], path: _Path, *, also: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        unknown = self._refuse_unknown(raw, (*(field.key for field in fields), *also), path)
        read = {}
        for field in fields:
            value = self._field(raw, field, path, is_misspelt=field.key in unknown)
            if value is not None:
                read[field.key] = value
        return read

    def _field(self, raw: Mapping[str, object], field: Field, path: _Path, *, is_misspelt: bool = False) -> Any:
        if field.key not in raw:
            if field.is_required and not is_misspelt:
                self._fault((*path, field.key), "it is missing", f"{show_path(path) or 'a scenario'} must have it")
            return None
        try:
            return field.read(raw[field.key])
        except WrongValueError as error:
            self._fault((*path, field.key), error.found, error.allowed, error.suggestion)
            return None

    def _refuse_unknown(self, raw: Mapping[str, object], known: tuple[str, ...], path: _Path) -> set[str]:
        """Tell of keys that there are none of; which keys were probably meant."""
        meant = set()
        for key in raw:
            if key not in known:
                guess = guess_word(key, known)
                meant.add(guess)
                self._fault((*path, key), "there is no such key", f"known are {', '.join(known)}", guess)
        return meant

    # -- processes -----------------------------------------------------------------------------------------

    def _processes(self) -> Iterator[_Written]:
        if self._document.get("process", []) == []:
            self._fault(("process",), "it is missing", "a scenario must have processes, each begun by [[process]]")
            return
        for position, (raw, row) in enumerate(self._rows("process", PROCESS, also=("thread",))):
            threads = raw.get("thread", [{"does": "idle"}])
            path: _Path = ("process", position, "thread")
            if not isinstance(threads, list) or not all(isinstance(thread, dict) for thread in threads) or not threads:
                self._fault(
                    path, f"found {show_value(threads)}", "allowed are tables, each begun by [[process.thread]]"
                )
                threads = []
            read = [self._program(thread, (*path, number)) for number, thread in enumerate(threads)]
            programs = tuple(program for program in read if program is not None)
            yield _Written(position, row, programs, tuple(_expand(row, programs)))

    def _program(self, raw: Mapping[str, object], path: _Path) -> ProgramSpec | None:
        kind = self._field(raw, DOES, path)
        if kind is None:
            return None
        options = self._fields(raw, program_fields(kind), path, also=("does",))
        times = {f"{field.key}_ms" for field in program_fields(kind) if field.read is read_time}
        return ProgramSpec(
            kind,
            {
                (f"{key}_ms" if f"{key}_ms" in times else key): (value / MS if f"{key}_ms" in times else value)
                for key, value in options.items()
            },
        )

    def _watcher(self) -> tuple[Plan | None, bool]:
        raw = self._document.get("watcher")
        if raw is None:
            return None, True
        if not isinstance(raw, dict):
            self._fault(("watcher",), f"found {show_value(raw)}", "allowed is a table, [watcher]")
            return None, True
        read = self._fields(raw, WATCHER, ("watcher",), also=("settings",))
        settings = raw.get("settings")
        if settings is None:
            return None, read.get("realtime", True)
        if not isinstance(settings, dict):
            self._fault(("watcher", "settings"), f"found {show_value(settings)}", "allowed is a table of settings")
            return None, True
        return self._plan(settings), read.get("realtime", True)

    def _plan(self, settings: Mapping[str, object]) -> Plan | None:
        from oomreaper.config.compile import compile_plan
        from oomreaper.config.schema import check_document

        inside: _Path = ("watcher", "settings")
        read, faults = check_document(
            settings, self._source.file, lambda path, found: self._find_line((*inside, *path), found)
        )
        self._faults += [fault._replace(key=f"{show_path(inside)}.{fault.key}") for fault in faults]
        return None if faults else compile_plan(read, config_path=None)

    # -- what one key says of another ----------------------------------------------------------------------

    def _check_names(self, tables: Mapping[str, list[dict[str, Any]]], specs: list[_Written]) -> None:
        known = {key: [row.get("name", "") for row in tables[key]] for key in ("freezer", "group", "cpu_group")}
        known["process"] = [spec.name for spec in specs]
        for key, found in known.items():
            for position, name in enumerate(found):
                if name and name in found[:position]:
                    self._fault(
                        (key, position, "name"), f'found "{show_text(name)}" again', "each has a name of its own"
                    )
        known["gate"] = [
            str(program.options["gate"]) for spec in specs for program in spec.programs if "gate" in program.options
        ]
        known["gate"] += [spec.row["exit_gate"] for spec in specs if "exit_gate" in spec.row]
        known["process"] += [process.name for spec in specs for process in spec.processes]
        earlier: list[str] = []
        for spec in specs:
            here: _Path = ("process", spec.position)
            for key in ("group", "freezer", "cpu_group"):
                self._need(spec.row.get(key), known[key], (*here, key), f"a [[{key}]] of the file")
            self._need(spec.row.get("shares_with"), earlier, (*here, "shares_with"), "a process further up")
            for number, program in enumerate(spec.programs):
                for option in ("of", "child"):
                    place = (*here, "thread", number, option)
                    self._need(program.options.get(option), known["process"], place, "a process of the file")
            if "start_every" in spec.row and not any(
                "start_ms" in program.options for program in spec.processes[-1].programs
            ):
                self._fault(
                    (*here, "start_every"), "none of its threads has a start", "known are programs that do: hog"
                )
            earlier += [process.name for process in spec.processes]
        for position, row in enumerate(tables["event"]):
            if "does" in row:
                kind = TARGETS[row["does"]]
                what = "a gate that somebody stands at" if kind == "gate" else f"a {kind} of the file"
                self._need(row.get("target"), known[kind], ("event", position, "target"), what)
        total = sum(len(spec.processes) for spec in specs)
        if total > _MOST_PROCESSES:
            self._fault(("process",), f"found {total} processes in all", f"allowed are {_MOST_PROCESSES}")

    def _need(self, name: str | None, known: list[str], path: _Path, what: str) -> None:
        if name is not None and name not in known:
            self._fault(path, f'found "{show_text(name)}"', f"allowed is the name of {what}", guess_word(name, known))

    def _check_memory(self, machine: Mapping[str, Any], specs: list[_Written]) -> None:
        memory_mib = machine.get("memory_mib")
        if memory_mib is None:
            return
        processes = [process for spec in specs for process in spec.processes]
        fixed_mib = machine.get("kernel_mib", 64.0) + machine.get("cache_mib", 64.0) + _SPARE_MIB
        held_mib = sum(
            each.anon_mib + each.file_mib + each.shared_mib + each.hugetlb_mib + each.locked_mib for each in processes
        )
        if fixed_mib + held_mib > memory_mib:
            self._fault(
                ("machine", "memory_mib"),
                f"found {memory_mib:g}, and {fixed_mib + held_mib:g} MiB are held from the start",
                f"{held_mib:g} by processes, the rest by kernel_mib, cache_mib and {_SPARE_MIB} MiB for the watermarks",
            )
        swapped_mib = sum(process.swap_mib for process in processes)
        if swapped_mib > machine.get("swap_mib", 0.0):
            self._fault(
                ("machine", "swap_mib"),
                f"found {machine.get('swap_mib', 0.0):g}, and {swapped_mib:g} MiB are swapped from the start",
                "the machine must have so much swap",
            )

    # -- faults --------------------------------------------------------------------------------------------

    def _fault(self, path: _Path, found: str, allowed: str, suggestion: str = "") -> None:
        line = self._find_line(path, found)
        self._faults.append(Fault(self._source.file, show_path(path), line, found, allowed, suggestion))

    def _find_line(self, path: _Path, found: object) -> int | None:
        """A thread's tables are counted through the whole file by ``source``, and within their process by us."""
        if path[:1] == ("process",) and path[2:3] == ("thread",) and len(path) > 3:  # noqa: PLR2004 - process, n, thread, m
            rows = self._document["process"]
            assert isinstance(rows, list)
            before = sum(len(row.get("thread", ())) for row in rows[: int(path[1])] if isinstance(row, dict))
            counted: _Path = ("process", "thread", before + int(path[3]), *path[4:])
            line = self._source.find_line(counted, found)
            if line is not None:
                return line
        return self._source.find_line(path, found)

    def _sorted_faults(self) -> tuple[Fault, ...]:
        faults = sorted(self._faults, key=lambda fault: fault.line or 0)
        if len(faults) <= MOST_FAULTS:
            return tuple(faults)
        rest = Fault(self._source.file, "", None, f"and {len(faults) - MOST_FAULTS} faults more", "")
        return (*faults[:MOST_FAULTS], rest)


def _expand(row: Mapping[str, Any], programs: tuple[ProgramSpec, ...]) -> Iterator[ProcessSpec]:
    """The processes of one table: as many as it says, the hogs of each later by ``start_every``."""
    count, name = row.get("count", 1), row.get("name", "")
    same = {key: value for key, value in row.items() if key in ProcessSpec._fields and key != "name"}
    for number in range(count):
        later_ms = number * row.get("start_every", 0) / MS
        yield ProcessSpec(
            name if count == 1 else f"{name}-{number + 1}",
            tuple(_delay(program, later_ms) if later_ms or "start_every" in row else program for program in programs),
            waited_after_ms=0 if row.get("is_waited_for", True) else None,
            **same,
        )


def _delay(program: ProgramSpec, later_ms: float) -> ProgramSpec:
    if program.kind != "hog":
        return program
    return program._replace(options={**program.options, "start_ms": program.options.get("start_ms", 0) + later_ms})


def _parameters(machine: Mapping[str, Any]) -> Parameters:
    changes: dict[str, Any] = {"memory_bytes": int(machine["memory_mib"] * (1 << 20))}
    changes["swap_bytes"] = int(machine.get("swap_mib", 0.0) * (1 << 20))
    if "step_us" in machine:
        changes["step_ns"] = machine["step_us"] * 1_000
    for key, field in (
        ("cpus", "cpus"),
        ("hz", "hz"),
        ("slice_pages", "slice_pages"),
        ("reap_attempts", "reap_attempts"),
        ("reap_sleep", "reap_sleep_ns"),
        ("reap_delay", "reap_delay_ns"),
    ):
        if key in machine:
            changes[field] = machine[key]
    return Parameters(**changes)
