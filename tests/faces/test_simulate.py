"""``oomreaper simulate``: what each part of it prints, how it ends, and that an interrupted sweep loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.errors import KernelError
from oomreaper.sim.checks import Violation
from oomreaper.sim.experiments import checking, contenders, lockup, sweeping
from oomreaper.sim.experiments.intervals import Share
from oomreaper.sim.experiments.shrinking import shrink_choices
from tests.faces.simulating import main

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "tests.faces.simulating"]
# A worker must get from its start to its tenth seed in this time, on a machine that runs other tests as well.
_LIMIT_S = 60.0
RUN_KEYS = {"kind", "scenario", "killer", "seed", "verdict", "duration_ms", "short_ms", "kills", "steps", "diagnosis"}


def _json(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- run ---------------------------------------------------------------------------------------------------


def test_a_run_prints_what_happened_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """The founding commit's case with the founding commit: a plot, the kill, and that it recovered."""
    assert main(["run", "core_dump", "--killer", "founding", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert "SIGKILL to database[" in out
    assert out.splitlines()[-1].startswith("recovered after ")


def test_a_lock_up_ends_with_1_and_says_who_waits_for_whom(capsys: pytest.CaptureFixture[str]) -> None:
    """Before 2016 the dumping victim is waited for: the diagnosis names the importer that waits for its memory."""
    assert main(["run", "core_dump", "--killer", "oom_killer"]) == 1
    out = capsys.readouterr().out
    assert "locked up after" in out
    assert "importer" in out[out.index("who waits for whom:") :]
    assert "waits for free memory: database" in out


def test_a_run_as_json_has_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """Events in order of time, then the run; the same seed prints the same."""
    assert main(["run", "d_state", "--seed", "3", "--json"]) == 0
    first = _json(capsys)
    assert main(["run", "d_state", "--seed", "3", "--json"]) == 0
    again = _json(capsys)

    *events, run = first
    assert set(run) == RUN_KEYS
    assert {frozenset(event) for event in events} == {frozenset({"kind", "at_ms", "what"})}
    assert [event["at_ms"] for event in events] == sorted(event["at_ms"] for event in events)
    assert first == again


def test_the_traces_are_whole(tmp_path: Path) -> None:
    """JSON has every step and every choice; the other is a trace of events with names, slices and memory."""
    trace, chrome = tmp_path / "trace.json", tmp_path / "chrome.json"

    status = main(["run", "healthy", "--killer", "later", "--trace", str(trace), "--perfetto", str(chrome)])
    written, events = json.loads(trace.read_text()), json.loads(chrome.read_text())["traceEvents"]
    assert status == 0
    assert written["steps"] == written["trace"][-1]["step"]
    assert written["choices"]
    assert {"free_bytes", "anon_bytes", "swap_bytes", "stalled", "now_ns"} == set(written["memory"][0])
    assert {"M", "X", "i", "C"} == {event["ph"] for event in events}
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    assert all(event["ts"] >= 0 for event in events if "ts" in event)


def test_a_recorded_run_goes_as_an_unrecorded_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Looking changes nothing: with a trace, the same steps."""
    main(["run", "inode_lock", "--killer", "later", "--json"])
    plain = _json(capsys)[-1]
    main(["run", "inode_lock", "--killer", "later", "--json", "--trace", str(tmp_path / "x")])
    assert plain == _json(capsys)[-1]


# -- usage -------------------------------------------------------------------------------------------------


def test_a_broken_scenario_ends_with_2_and_names_its_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error in words, on standard output as JSON."""
    file = tmp_path / "x.toml"
    file.write_text("[machine]\nmemory_mb = 1\n", encoding="utf-8")

    assert main(["run", str(file)]) == 2
    assert "x.toml:2: machine.memory_mb: there is no such key" in capsys.readouterr().err
    assert main(["sweep", str(file), "--json"]) == 2
    faults = _json(capsys)
    assert [fault["key"] for fault in faults] == ["process", "machine.memory_mb"]
    assert set(faults[0]) == {"kind", "file", "key", "line", "found", "allowed", "suggestion"}


@pytest.mark.parametrize(
    "words",
    [["run", "nobody"], ["run", "healthy", "--trace", "/no/where"], ["sweep", "healthy", "--file", "/no/where"]],
)
def test_what_cannot_be_used_ends_with_2(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No such scenario; files that cannot be written."""
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("oomreaper: ")


@pytest.mark.parametrize("words", [["run"], ["run", "healthy", "--seed", "-1"], ["sweep", "healthy", "--seeds", "0"]])
def test_wrong_arguments_are_refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says which; 2."""
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert (raised.value.code, "usage" in capsys.readouterr().err) == (2, True)


def test_without_greenlet_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """3, with the command to type; the kernel's killers do without."""
    monkeypatch.setitem(sys.modules, "greenlet", None)

    with pytest.raises(KernelError, match="pip install 'oomreaper"):
        contenders.need_greenlet()
    assert main(["sweep", "healthy", "--seeds", "1"]) == 3
    assert main(["sweep", "healthy", "--seeds", "1", "--killer", "later"]) == 0


# -- sweep -------------------------------------------------------------------------------------------------


def test_a_sweep_as_json_has_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares with their intervals that come to 1; nothing about progress where nobody watches."""
    assert main(["sweep", "healthy", "--seeds", "6", "--killer", "founding", "--json"]) == 0
    captured = capsys.readouterr()
    (record,) = [json.loads(line) for line in captured.out.splitlines()]
    assert set(record) == {
        *("kind", "scenario", "killer", "seeds", "errors", "shares", "kills_mean", "steps", "seconds"),
    }
    assert sum(share["share"] for share in record["shares"].values()) == 1
    assert all(share["low"] <= share["share"] <= share["high"] for share in record["shares"].values())
    assert captured.err == ""


def test_a_sweep_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished seeds are not done again; a line that was cut short is; another scenario is refused."""
    file = tmp_path / "sweep.jsonl"
    words = ["sweep", "healthy", "--killer", "later", "--file", str(file), "--json"]
    main([*words, "--seeds", "4"])
    head, *lines = file.read_text().splitlines()
    marked = [json.dumps({**json.loads(line), "kills": 100}) for line in lines]
    file.write_text("\n".join([head, *marked[:3], marked[3][:20]]))
    capsys.readouterr()

    assert main([*words, "--seeds", "6"]) == 0
    (record,) = _json(capsys)
    assert (record["seeds"], record["kills_mean"]) == (6, (3 * 100 + 3) / 6)
    assert main(["sweep", "frozen", *words[2:], "--seeds", "6"]) == 2
    assert "another sweep's" in capsys.readouterr().err


def _start_sweep(file: Path) -> subprocess.Popen[bytes]:
    words = ["sweep", "inode_lock", "--killer", "later", "--seeds", "100000", "--file", str(file)]
    sweep = subprocess.Popen([*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + _LIMIT_S
    while not file.exists() or file.read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline_s, sweep.poll()
        time.sleep(0.01)
    return sweep


def _seeds_in(file: Path) -> list[int]:
    lines = file.read_bytes().split(b"\n")
    assert lines[-1] == b""
    return [json.loads(line)["seed"] for line in lines[1:-1]]


def test_a_killed_sweep_loses_nothing_that_had_finished(tmp_path: Path) -> None:
    """SIGKILL: its workers end with it, the file has every finished seed once, and the next run keeps them."""
    file = tmp_path / "sweep.jsonl"
    with _start_sweep(file) as sweep:
        os.kill(sweep.pid, signal.SIGKILL)
        # The pipes are the workers', too: they end with the last of them.
        _, errors = sweep.communicate(timeout=_LIMIT_S)
    seeds = _seeds_in(file)

    assert errors == b""
    assert len(seeds) >= 9
    assert len(seeds) == len(set(seeds))
    before = file.read_bytes()
    words = ["--seeds", str(len(seeds)), "--file", str(file)]
    assert main(["sweep", "inode_lock", "--killer", "later", *words]) == 0
    assert file.read_bytes().startswith(before)
    assert sorted(_seeds_in(file))[: len(seeds)] == list(range(len(seeds)))


def test_an_interrupted_sweep_ends_with_130_and_says_what_is_kept(tmp_path: Path) -> None:
    """Ctrl-C: no traceback, the seeds that were being done are finished."""
    file = tmp_path / "sweep.jsonl"
    with _start_sweep(file) as sweep:
        sweep.send_signal(signal.SIGINT)
        out, errors = sweep.communicate(timeout=_LIMIT_S)

    assert (sweep.returncode, out) == (130, b"")
    assert errors.decode() == f"oomreaper: interrupted; {len(_seeds_in(file))} seeds are kept in {file}\n"


def test_a_run_that_goes_wrong_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that eats memory, one without an end, one that raises: each is a result, and the others are done."""
    monkeypatch.setattr(sweeping, "_MOST_S", 1)

    def work(seed: int) -> dict[str, Any]:
        if seed == 0:
            return {"kept": len(bytearray(2 << 30))}
        while seed == 1:
            pass
        return {"inverse": 1 / (seed - 2)}

    store = sweeping.Store(None, {})
    results = sweeping.sweep(range(4), work, store, jobs=2)
    store.close()

    errors = [results[seed].get("error", "").partition(":")[0] for seed in range(4)]
    assert errors == ["MemoryError", "TimeoutError", "ZeroDivisionError", ""]


# -- check, mutants, lock-ups ------------------------------------------------------------------------------


def test_check_as_json_has_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds, steps, violations, seconds."""
    status = main(["check", "--seeds", "6", "--json", "--failure", str(tmp_path / "x")])
    (record,) = _json(capsys)
    assert set(record) == {"kind", "first", "seeds", "steps", "violations", "seconds"}
    assert (record["seeds"], status) == (6, 1 if record["violations"] else 0)
    assert record["steps"] > 0


def test_a_violation_is_shrunk_and_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1; the file has fewer processes and choices than the run had, and replays to the same breach: 1."""

    def break_something(machine: Any, _case: Any, processes: list[Any]) -> None:
        machine.engine.run(max_steps=50)
        if any(process.comm == b"p1" for process in processes):
            raise Violation("broken-on-purpose", "p1 is there")

    monkeypatch.setattr(checking, "_reap", break_something)
    file = tmp_path / "failure.json"

    assert main(["check", "--seeds", "1", "--json", "--failure", str(file)]) == 1
    (record,) = _json(capsys)
    failure = json.loads(file.read_text())
    assert [violation["invariant"] for violation in record["violations"]] == ["broken-on-purpose"]
    assert set(record["violations"][0]) == {"seed", "invariant", "text"}
    assert (failure["processes"], failure["has_faults"], failure["choices"]) == ([1], False, [])
    assert main(["check", "--replay", str(file), "--json"]) == 1
    assert _json(capsys) == [{"kind": "violation", "invariant": "broken-on-purpose", "text": "p1 is there"}]


def test_a_file_that_is_no_failure_is_refused(tmp_path: Path) -> None:
    """2 for a file of something else, and for none."""
    file = tmp_path / "x"
    file.write_text("[1]", encoding="utf-8")

    assert main(["check", "--replay", str(file)]) == 2
    assert main(["check", "--replay", str(tmp_path / "none")]) == 2


def test_a_mutant_that_gets_away_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON line for each; with the first two of the list and one seed, at least the schema and the status hold."""
    from oomreaper.sim import mutations

    two = mutations.all_mutants()[:2]
    monkeypatch.setattr(mutations, "all_mutants", lambda: two)

    status = main(["mutants", "--json", "--seeds", "3"])
    records = _json(capsys)
    assert [record["mutant"] for record in records] == [mutant.name for mutant in two]
    assert all({"mutant", "caught", "seed", "steps"} <= set(record) for record in records)
    assert status == (0 if all(record["caught"] for record in records) else 1)


def test_lockup_as_json_has_a_cell_for_each_workload_and_killer(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its share and interval; the same again for the same seeds."""
    assert main(["lockup", "--seeds", "1", "--json"]) == 0
    first = _json(capsys)
    assert main(["lockup", "--seeds", "1", "--json", "--jobs", "1"]) == 0

    assert first == _json(capsys)
    assert [(cell["workload"], cell["killer"]) for cell in first] == [
        (workload, killer) for workload in lockup.WORKLOADS for killer in contenders.NAMES
    ]
    assert set(first[0]["locked_up"]) == {"number", "total", "share", "low", "high"}


def test_the_page_is_what_the_table_generates() -> None:
    """docs/simulation.md has the table between its markers, and putting the same in again changes nothing."""
    text = (ROOT / "docs/simulation.md").read_text(encoding="utf-8")
    for killer in contenders.NAMES:
        assert f"* `{killer}`:" in text, "run: oomreaper simulate lockup --write"
    for workload in lockup.WORKLOADS:
        assert f"| `{workload}`:" in text

    table = text[text.index("Share of ") : text.index("\n\n![")] + "\n"
    assert lockup.page_with(text, table) == text


# -- arithmetic --------------------------------------------------------------------------------------------


def test_intervals_are_wilson_s() -> None:
    """Values of the literature: 0 and 10 of 10, 5 of 10; nothing of nothing."""
    rounded = [tuple(round(end, 4) for end in Share(number, 10).interval) for number in (0, 5, 10)]

    assert rounded == [(0.0, 0.2775), (0.2366, 0.7634), (0.7225, 1.0)]
    assert Share(0, 0).interval == (0.0, 1.0)
    assert str(Share(0, 0)) == "-"


def test_a_schedule_is_shrunk_to_what_matters() -> None:
    """Of 400 choices, the two that are needed for the failure, in their order, stay; the tries are bounded."""
    choices = [number % 7 for number in range(400)]
    tries = 0

    def fails(candidate: Sequence[int]) -> bool:
        nonlocal tries
        tries += 1
        return 6 in candidate and 5 in list(candidate)[list(candidate).index(6) :]

    assert shrink_choices(choices, fails) == [6, 5]
    assert tries < 300
    assert len(shrink_choices(choices, fails, most_tries=3)) >= 2
