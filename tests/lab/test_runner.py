"""The grid: what is in it, what is left of it, and what of a run that cannot be set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.contestants import CONTESTANTS, find_contestants
from lab.records import read_records
from lab.runner import plan_grid, run_grid, smoke
from lab.scenario import load_scenario, names
from oomreaper.errors import UsageError
from tests.lab.fake_guest import FakeMaker, Killer

if TYPE_CHECKING:
    from pathlib import Path

_OURS_ONCE: dict[str, Any] = {
    "contestants": ["oomreaper"],
    "kernels": ["newest"],
    "image": "small",
    "most_wait_percent": None,  # the fake's time passes at once: whatever the host does in it is much
}


def _titles(**changes: Any) -> list[tuple[str, str, str, int]]:
    wanted: dict[str, Any] = {
        "scenarios": None,
        "contestants": None,
        "kernels": None,
        "repeats": 1,
        "image": "full",
        **changes,
    }
    return [(run.scenario.name, run.contestant.title, run.kernel, run.repeat) for run in plan_grid(**wanted)]


def test_the_whole_grid_has_every_contestant_in_every_scenario_on_the_newest_kernel() -> None:
    """On the older ones ours, the kernel alone and one peer, over the decisive scenarios."""
    titles = _titles()
    older = {(scenario, who) for scenario, who, kernel, _ in titles if kernel == "6.1"}
    decisive = [name for name in names() if load_scenario(name).is_decisive]

    assert sum(kernel == "newest" for _, _, kernel, _ in titles) == len(names()) * len(CONTESTANTS)
    assert older == {(name, who) for name in decisive for who in ("kernel", "oomreaper", "earlyoom")}
    assert len(names()) >= 15
    assert len({each.name for each in CONTESTANTS}) == 6


def test_the_small_image_has_the_kernel_and_ours() -> None:
    """And no scenario that needs a service manager or runc."""
    titles = _titles(image="small")

    assert {who for _, who, _, _ in titles} == {"kernel", "oomreaper"}
    assert "container_limit" not in {scenario for scenario, _, _, _ in titles}


def test_a_repeat_is_whole_before_the_next_begins() -> None:
    """An hour of it is a table already."""
    repeats = [repeat for _, _, _, repeat in _titles(repeats=3)]

    assert repeats == sorted(repeats)


def test_what_there_is_none_of_is_refused() -> None:
    """Before anything is booted."""
    for wrong in ({"scenarios": ["leek"]}, {"contestants": ["earlybird"]}, {"kernels": ["2.4"]}):
        with pytest.raises(UsageError):
            _titles(**wrong)


def test_a_contestant_is_named_with_or_without_its_settings() -> None:
    """``earlyoom`` is both."""
    assert [each.title for each in find_contestants(["earlyoom"])] == ["earlyoom", "earlyoom (tuned)"]
    assert [each.title for each in find_contestants(["nohang/tuned", "kernel"])] == ["nohang (tuned)", "kernel"]


def test_a_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    """What is done is not done again; a guest is made for each run that is."""
    maker, said = FakeMaker(), list[str]()
    for scenarios in (["leak_fast"], ["leak_fast", "leak_slow"]):
        status = run_grid(
            maker,
            scenarios=scenarios,
            repeats=2,
            folder=tmp_path,
            say=said.append,
            now_ns=maker.clock.now_ns,
            **_OURS_ONCE,
        )
        assert status == 0

    assert [record.key[:1] + record.key[-1:] for record in read_records(tmp_path)] == [
        ("leak_fast", 1), ("leak_fast", 2), ("leak_slow", 1), ("leak_slow", 2)
    ]  # fmt: skip
    assert len(maker.made) == 4
    assert "4 runs, 2 of them done" in "\n".join(said)


def test_a_run_that_cannot_be_set_up_leaves_no_record(tmp_path: Path) -> None:
    """It is told, the others go on, and the exit status says that the grid is not whole."""
    maker, said = FakeMaker(Killer(refuses=("trace",))), list[str]()
    status = run_grid(
        maker,
        scenarios=["leak_fast", "leak_slow"],
        repeats=1,
        folder=tmp_path,
        say=said.append,
        now_ns=maker.clock.now_ns,
        **_OURS_ONCE,
    )

    assert status == 1
    assert not list(tmp_path.iterdir())
    assert sum("COULD NOT BE SET UP: trace" in text for text in said) == 2


def test_progress_says_how_long_it_will_take(tmp_path: Path) -> None:
    """At the start, and before each run."""
    maker, said = FakeMaker(), list[str]()
    run_grid(
        maker,
        scenarios=["leak_fast"],
        repeats=2,
        folder=tmp_path,
        say=said.append,
        now_ns=maker.clock.now_ns,
        **_OURS_ONCE,
    )

    assert said[0].startswith("2 runs, 0 of them done; the rest takes about ")
    assert said[1] == "[1/2] leak_fast, oomreaper, newest small, repeat 1 begins; 2 min to go"
    assert "recovered in " in said[2]


def test_the_smoke_fails_when_something_does_not_come_as_it_must() -> None:
    """With the reason and the killer's log; and it passes no run that could not be set up."""
    for killer, text in (
        (Killer(victims=("desk", "hog")), "killed without need: desk"),
        (Killer(refuses=("trace",)), "COULD NOT BE SET UP"),
    ):
        maker, said = FakeMaker(killer), list[str]()
        assert smoke(maker, say=said.append, now_ns=maker.clock.now_ns) == 1
        assert text in "\n".join(said)


def test_the_smoke_covers_the_decisive_and_takes_minutes() -> None:
    """At least six scenarios; even if each took its whole time it would be ten minutes."""
    chosen = [load_scenario(name) for name in names() if load_scenario(name).is_in_smoke]

    assert len(chosen) >= 6
    assert sum(scenario.duration_ns for scenario in chosen) < 400 * 10**9
    assert len({scenario.machine for scenario in chosen}) <= 2


def test_a_run_beside_others_work_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times would be the host's; the grid says so, and is not whole."""
    waited_us = iter((0, 40_000_000))
    monkeypatch.setattr("lab.play._read_waited_us", lambda: next(waited_us))
    maker, said = FakeMaker(), list[str]()
    wanted = {**_OURS_ONCE, "most_wait_percent": 50.0}
    status = run_grid(
        maker, scenarios=["leak_fast"], repeats=1, folder=tmp_path, say=said.append, now_ns=maker.clock.now_ns, **wanted
    )

    assert status == 1
    assert not list(tmp_path.iterdir())
    assert "IS NOT KEPT: this host was busy for" in "\n".join(said)
