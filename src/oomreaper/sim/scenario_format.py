"""The format of a scenario file: which tables and keys there are, and how the value of each is read.

The programs' keys are those of ``scenario.PROGRAM_KINDS``: an option that ends in ``_ms`` is a time there, and written
without that ending and with its unit (``start = "50ms"``). A key that is added here or there works at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.config.values import WrongValueError, read_choice, read_count, read_duration, read_flag, show_value
from oomreaper.sim.parameters import MS, SECOND
from oomreaper.sim.scenario import ACTIONS, BANDS, PROGRAM_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# An hour: no path of any killer takes longer than some seconds.
_LONGEST_NS = 3_600 * SECOND
# A machine larger than any; a run takes as long as there are slices.
_MOST_MIB = 64 * 1024


class Field(NamedTuple):
    """One key: how its value is read; whether it must be there."""

    key: str
    read: Callable[[object], Any]
    is_required: bool = False


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or len(raw) > 200:  # noqa: PLR2004 - a line, not a novel
        raise WrongValueError(f"found {show_value(raw)}", "allowed is a short text")
    return raw


def _mib(smallest: float = 0) -> Callable[[object], float]:
    def read(raw: object) -> float:
        is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
        if not is_number or not smallest <= raw <= _MOST_MIB:  # type: ignore[operator] # a number by now
            raise WrongValueError(
                f"found {show_value(raw)}", f"allowed is a size in MiB from {smallest:g} to {_MOST_MIB}"
            )
        return float(raw)  # type: ignore[arg-type] # as above

    return read


def _share(raw: object) -> float:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= 6_400:  # noqa: PLR2004 - 64 CPUs
        raise WrongValueError(f"found {show_value(raw)}", "allowed are per cent of one CPU, from 1 to 6400")
    return float(raw)


read_time = read_duration(0, _LONGEST_NS)
ABOUT = Field("about", _text)
MACHINE = (
    Field("memory_mib", _mib(64), is_required=True),
    Field("swap_mib", _mib()),
    Field("kernel_mib", _mib()),
    Field("cache_mib", _mib()),
    Field("cpus", read_count(1, 64)),
    Field("hz", read_count(100, 1000)),
    Field("slice_pages", read_count(1, 65_536)),
    Field("step_us", read_count(1, 1_000)),
    Field("reap_attempts", read_count(1, 1000)),
    Field("reap_sleep", read_duration(1 * MS, 60 * SECOND)),
    Field("reap_delay", read_time),
    Field("recycles_pids", read_flag),
)
PROCESS = (
    Field("name", _text, is_required=True),
    Field("count", read_count(1, 2_000)),
    Field("start_every", read_time),
    Field("anon_mib", _mib()),
    Field("swap_mib", _mib()),
    Field("file_mib", _mib()),
    Field("shared_mib", _mib()),
    Field("hugetlb_mib", _mib()),
    Field("locked_mib", _mib()),
    Field("notifier_blocks", read_flag),
    Field("shares_with", _text),
    Field("oom_score_adj", read_count(-1000, 1000)),
    Field("uid", read_count(0, 65_534)),
    Field("band", read_choice(*BANDS)),
    Field("group", _text),
    Field("freezer", _text),
    Field("cpu_group", _text),
    Field("exit_gate", _text),
    Field("is_waited_for", read_flag),
    Field("ignores_term", read_flag),
)
_EVENT = (
    Field("at", read_time, is_required=True),
    Field("does", read_choice(*ACTIONS), is_required=True),
    Field("target", _text, is_required=True),
)
_FREEZER = (Field("name", _text, is_required=True),)
_GROUP = (Field("name", _text, is_required=True), Field("limit_mib", _mib(1)), Field("has_killer", read_flag))
_CPU_GROUP = (Field("name", _text, is_required=True), Field("quota_percent", _share, is_required=True))
WATCHER = (Field("realtime", read_flag),)
DOES = Field("does", read_choice(*PROGRAM_KINDS), is_required=True)
# How an option of a program is read; one whose name ends in _ms is a time, without that ending.
_OPTIONS: Mapping[str, Callable[[object], Any]] = {
    "mib": _mib(0.004),
    "inode": _text,
    "gate": _text,
    "of": _text,
    "child": _text,
    "is_writer": read_flag,
    "is_killable": read_flag,
}
TABLES: Mapping[str, tuple[Field, ...]] = {
    "event": _EVENT,
    "freezer": _FREEZER,
    "group": _GROUP,
    "cpu_group": _CPU_GROUP,
}
TOP = ("about", "machine", "process", *TABLES, "watcher")
# Of what an event's target is the name.
TARGETS = {"open": "gate", "kill": "process", "terminate": "process", "freeze": "freezer", "thaw": "freezer"}


def program_fields(kind: str) -> tuple[Field, ...]:
    """What a program of this kind takes, besides ``does``."""
    needed, optional, _ = PROGRAM_KINDS[kind]
    return tuple(
        Field(name.removesuffix("_ms"), _OPTIONS.get(name, read_time), is_required=name in needed)
        for name in (*needed, *optional)
    )
