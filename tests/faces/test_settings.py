"""How ``oomreaper check`` and ``oomreaper import`` look: on a screen, on a narrow one, and to a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomreaper.config.load import load_plan, load_source
from oomreaper.config.source import parse_source
from oomreaper.config.write import write_defaults
from oomreaper.faces.settings import render_check, run_check, run_import
from oomreaper.watch.plan import decode_plan

PEER_FILE = Path(__file__).resolve().parent.parent / "config" / "files" / "earlyoom"
HOSTILE = (
    '[victims]\nnever = [{comm = "\\u001b[31m\\n\\u202e\\u00e9"}]\navoid = [{comm = "*"}]\n'
    '[watch]\nwithin = "/a\\u009b31m"\n[hooks]\npre_kill = ["/no/\\u0007"]\npost_kill = ["/bin/sh", "\\r"]\n'
)


def test_the_defaults_fit_a_screen() -> None:
    """All that would be in force, in 80 columns and 24 lines."""
    plan, advice = load_plan(None)

    lines = render_check(plan, advice, width=80).splitlines()
    assert len(lines) <= 24
    assert lines[0] == "no settings file: the defaults"
    assert "  when mem_available < 4% and swap_free < 10%" in lines


@pytest.mark.parametrize("width", [1, 40, 80, 200])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    """Every line fits, from 40 columns up, whatever the file holds."""
    for text in ("", HOSTILE):
        plan, advice = load_source(parse_source(text, "file"), config_path="/etc/oomreaper.toml")

        assert max(map(len, render_check(plan, advice, width=width).splitlines())) <= max(width, 30)


def test_nothing_in_a_file_reaches_the_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes, newlines and bidi marks are shown as escapes, in the text and in the JSON."""
    file = tmp_path / "x.toml"
    file.write_text(HOSTILE, encoding="utf-8")

    assert run_check(str(file), as_json=False, print_defaults=False) == 0
    assert run_check(str(file), as_json=True, print_defaults=False) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert all(line.isprintable() for line in out.splitlines())
    assert "warning" in out


def test_a_file_with_faults_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The faults go to standard error, each in a line; as JSON to standard output, each with its parts."""
    file = tmp_path / "x.toml"
    file.write_text("[kill]\nattempts = 0\naattempt = 1\n", encoding="utf-8")

    assert run_check(str(file), as_json=False, print_defaults=False) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 3
    assert "2 faults" in said.err

    assert run_check(str(file), as_json=True, print_defaults=False) == 2
    said = capsys.readouterr()
    faults = [json.loads(line) for line in said.out.splitlines()]
    assert [(fault["kind"], fault["key"], fault["line"]) for fault in faults] == [
        ("fault", "kill.attempts", 2),
        ("fault", "kill.aattempt", 3),
    ]
    assert faults[1]["suggestion"] == "attempt"


def test_the_json_has_the_whole_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the watcher gets it."""
    file = tmp_path / "x.toml"
    file.touch()

    run_check(str(file), as_json=True, print_defaults=False)

    (record,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert record.pop("kind") == "plan"
    assert load_plan(str(file))[0] == decode_plan(json.dumps(record).encode())


def test_the_defaults_are_printed_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """To begin one's own with."""
    assert run_check(None, as_json=False, print_defaults=True) == 0
    assert capsys.readouterr().out == write_defaults()


def test_an_import_prints_the_file_and_names_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is a settings file; what was not carried over is on standard error, too."""
    assert run_import("earlyoom", str(PEER_FILE), as_json=False) == 0
    said = capsys.readouterr()
    file = tmp_path / "x.toml"
    file.write_text(said.out, encoding="utf-8")

    assert len(load_plan(str(file))[0].rules) == 2
    assert "-r 3600" in said.err


def test_an_import_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting in a line, then the file."""
    assert run_import("earlyoom", str(PEER_FILE), as_json=True) == 0

    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [record["kind"] for record in records]
    assert set(kinds) == {"carried", "left", "file"}
    assert kinds[-1] == "file"
    assert all(record["setting"] and record["reason"] for record in records if record["kind"] == "left")


def test_an_import_of_nothing_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is a fault, and nothing is printed that could be taken for a settings file."""
    assert run_import("nohang", str(tmp_path / "none"), as_json=False) == 2
    said = capsys.readouterr()

    assert said.out == ""
    assert "No such file" in said.err
