"""A run's raw record: a line of JSON under ``lab/results``, one file a kernel. Pure but for reading and appending.

What stands in a record is what was seen, never what it comes to over several runs: that is the report's. A record is
written once, when its run is over, in one ``write`` and whole or not at all; a run that was interrupted leaves none and
is done again. So the files say by themselves what is left to do.

A time that could not be seen (nobody was killed; memory never came back) is null and no number that looks like one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"


class Kill(NamedTuple):
    """One process that was killed: by whom, when after the shortage began (null: there was none), and its role."""

    pid: int
    comm: str
    actor: str | None
    is_innocent: bool
    signal: int
    by: str
    is_by_kernel: bool
    after_ms: float | None


class Key(NamedTuple):
    """What makes a run one run and no other."""

    scenario: str
    contestant: str
    settings: str
    kernel: str
    image: str
    repeat: int


class Record(NamedTuple):
    """One run.

    Times are in ms. ``shortage_to_kill_ms``: from the first moment at which memory was below the scenario's level (10 %
    as a rule) to the first kill; null where either did not come, or the kill came first (``killed_before_shortage``).
    ``kill_to_memory_ms``: from the first kill until memory was above the scenario's other level, and a second longer.
    ``longest_stall_ms``: the longest time in which the guest's ordinary user came no further, by the host's clock;
    ``guest_stall_ms`` the same by the guest's own; ``host_stall_ms``: the longest in which the host did not look;
    ``host_wait_percent``: in how much of the time something on the host waited for a CPU (its PSI): what is measured
    beside others' work is no figure.
    ``recovered``: memory came back, and the machine could still start a program afterwards.
    ``broken``: what the scenario wants and did not come, in words; empty for a run that is as it must be.
    """

    scenario: str
    contestant: str
    settings: str
    version: str
    kernel: str
    image: str
    kernel_release: str
    repeat: int
    date: str
    recovered: bool
    kills: int
    innocent_kills: int
    kernel_kills: int
    shortage_to_kill_ms: float | None
    kill_to_memory_ms: float | None
    longest_stall_ms: float
    guest_stall_ms: float
    host_stall_ms: float
    host_wait_percent: float | None
    killed_before_shortage: bool
    psi_full_ms: float | None
    lowest_available_percent: float | None
    is_usable: bool
    is_lost: bool
    duration_s: float
    killer_cpu_ms: float | None
    killer_pss_kib: int | None
    broken: tuple[str, ...]
    killed: tuple[Kill, ...]
    log: tuple[str, ...]
    schema: int = SCHEMA

    @property
    def key(self) -> Key:
        """What makes it one run and no other."""
        return Key(self.scenario, self.contestant, self.settings, self.kernel, self.image, self.repeat)

    def as_json(self) -> str:
        """One line, without its end."""
        fields = self._asdict()
        fields["killed"] = [kill._asdict() for kill in self.killed]
        return json.dumps(fields, ensure_ascii=True, separators=(",", ":"))


class BadRecordError(Exception):
    """A line of a result file is no record; the message says where."""


def parse_record(line: str) -> Record:
    """A record from its line.

    Raises:
        BadRecordError: It is none, or one of another schema.
    """
    try:
        fields: Mapping[str, Any] = json.loads(line)
        if fields["schema"] != SCHEMA:
            raise BadRecordError(f"it has schema {fields['schema']}, and known is {SCHEMA}")
        return Record(
            **{
                **fields,
                "killed": tuple(Kill(**kill) for kill in fields["killed"]),
                "broken": tuple(fields["broken"]),
                "log": tuple(fields["log"]),
            }
        )
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecordError(f"it is no record: {error}") from error


def read_records(folder: Path = FOLDER) -> list[Record]:
    """Every record there is, the files by name and each in its order.

    Raises:
        BadRecordError: A line is none; the last line of a file may lack its end, and is passed over then.
    """
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        text = path.read_text(encoding="utf-8")
        whole, _, _torn = text.rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                records.append(parse_record(line))
            except BadRecordError as error:
                raise BadRecordError(f"{path.name}:{number}: {error}") from error
    return records


def append_record(record: Record, folder: Path = FOLDER) -> Path:
    """Write one line to the file of its kernel; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.kernel}.jsonl"
    _mend_end(path)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, record.as_json().encode() + b"\n")
    finally:
        os.close(fd)
    return path


def keys_of(records: Iterable[Record]) -> set[Key]:
    """Which runs are done."""
    return {record.key for record in records}


def _mend_end(path: Path) -> None:
    """Cut off a last line without an end: a run that was written while the disk filled, or the power went."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return
    if raw and not raw.endswith(b"\n"):
        os.truncate(path, raw.rfind(b"\n") + 1)
