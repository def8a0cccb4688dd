"""Records: a line each, read back as written, and a file that was cut off goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.records import BadRecordError, append_record, keys_of, parse_record, read_records
from tests.lab.recorded import make_kill, make_record

if TYPE_CHECKING:
    from pathlib import Path

_ASKED = (
    "scenario contestant version kernel repeat recovered kills innocent_kills shortage_to_kill_ms kill_to_memory_ms "
    "longest_stall_ms"
)


def test_a_record_is_read_back_as_it_was() -> None:
    """Hostile names among it: they are one line of ASCII all the same."""
    record = make_record(killed=(make_kill(comm='a\n"\x1b[31mé'),), log=("one", "two"), broken=("it did not",))
    line = record.as_json()

    assert parse_record(line) == record
    assert "\n" not in line
    assert line.isascii()


def test_a_record_has_the_fields_that_others_count_on() -> None:
    """The issue names them; they are at the top of the object."""
    line = make_record().as_json()

    assert [name for name in _ASKED.split() if f'"{name}":' not in line] == []


def test_records_are_kept_by_kernel_and_tell_what_is_done(tmp_path: Path) -> None:
    """The key of each is there; another repeat, image or settings is another run."""
    records = [make_record(), make_record(repeat=2), make_record(kernel="6.1"), make_record(settings="tuned")]
    for record in records:
        append_record(record, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["6.1.jsonl", "newest.jsonl"]
    assert keys_of(read_records(tmp_path)) == {record.key for record in records}
    assert len(keys_of(records)) == 4


def test_a_line_without_its_end_is_passed_over_and_mended(tmp_path: Path) -> None:
    """As when the power went in mid-write: the run counts as not done, and the next record stands on its own line."""
    path = append_record(make_record(), tmp_path)
    with path.open("a", encoding="ascii") as file:
        file.write(make_record(repeat=2).as_json()[:50])

    assert [record.repeat for record in read_records(tmp_path)] == [1]
    append_record(make_record(repeat=3), tmp_path)
    assert [record.repeat for record in read_records(tmp_path)] == [1, 3]


@pytest.mark.parametrize("line", ["{}", "3", "[", '{"schema": 99}', '{"schema": 1, "scenario": "x"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    """By its file and number: nothing of a table may be left out silently."""
    path = append_record(make_record(), tmp_path)
    with path.open("a", encoding="ascii") as file:
        file.write(f"{line}\n")

    with pytest.raises(BadRecordError, match=r"newest\.jsonl:2: "):
        read_records(tmp_path)


def test_a_record_of_another_schema_is_refused() -> None:
    """Its fields may mean something else, though all of them are there."""
    with pytest.raises(BadRecordError, match="schema 99"):
        parse_record(make_record(schema=99).as_json())
