"""The bench works, its page says what its results say, and its arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from bench import page, peers
from bench.__main__ import _parse
from bench.figures import FIGURES
from bench.machine import ROOT
from bench.records import Bar, Judge, Measure, Verdict, read_measure, summarize
from tests.victims.program import StageError

if TYPE_CHECKING:
    from pathlib import Path

_RESULTS = ROOT / "bench/results/latest.json"
_PAGE = ROOT / "docs/benchmarks.md"
_NOTES = ROOT / "bench/notes.md"
# A quick run takes half a minute on two idle CPUs; this is for a machine that runs other tests as well.
_LIMIT_S = 110


class Run(NamedTuple):
    """What one run of the bench wrote."""

    status: int
    errors: str
    results: dict[str, Any]
    page: str


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One quick run of the whole bench, as a user starts it."""
    folder = tmp_path_factory.mktemp("bench")
    results, written = folder / "results.json", folder / "page.md"
    command = [sys.executable, "-m", "bench", "--quick", "--results", str(results), "--page", str(written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    return Run(done.returncode, done.stderr, json.loads(results.read_text()), written.read_text())


@pytest.mark.needs("process_mrelease", "cc")
def test_quick_run_measures_every_figure_or_says_why_not(quick: Run) -> None:
    """A quick run succeeds, and has for every figure what it measured, or what this machine lacks for it."""
    empty = [name for name, record in quick.results["figures"].items() if not record["measures"] + record["missing"]]

    assert quick.status == 0, quick.errors
    assert list(quick.results["figures"]) == [figure.name for figure in FIGURES]
    assert empty == []


@pytest.mark.needs("process_mrelease", "cc")
def test_results_carry_what_follows_from_their_samples(quick: Run) -> None:
    """Medians, ratios and verdicts in the file are those of the raw samples beside them."""
    records = _measure_records(quick.results)

    assert records != []
    assert [read_measure(record).as_json() for record in records] == records


@pytest.mark.needs("process_mrelease", "cc")
def test_page_says_what_the_results_say(quick: Run) -> None:
    """Every measure stands on the page with its median, every bar with its verdict, and that it was a quick run."""
    rows = [_cells(line) for line in quick.page.splitlines() if line.startswith("| ")]
    measures = [read_measure(record) for record in _measure_records(quick.results)]
    judged = [measure for measure in measures if measure.bar is not None]

    assert "A quick run" in quick.page
    for measure in measures:
        for samples in measure.sides.values():
            median = page.number(summarize(samples).median, measure.unit)
            assert any(measure.title in row[0] and median in row for row in rows), (measure.title, median)
    for measure in judged:
        assert any(measure.title in row and f"**{measure.verdict.value}**" in row for row in rows), measure.title


@pytest.mark.needs("process_mrelease", "cc")
def test_one_figure_leaves_the_others_as_they_are(quick: Run, tmp_path: Path) -> None:
    """``--figure`` measures that figure anew and keeps what the file says of the others."""
    results, written = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps(quick.results))
    command = [sys.executable, "-m", "bench", "--quick", "--repeats", "1", "--figure", "resident"]
    command += ["--results", str(results), "--page", str(written)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=_LIMIT_S, check=True)
    now = json.loads(results.read_text())["figures"]
    before = quick.results["figures"]

    assert {name for name in now if now[name] != before[name]} == {"resident"}
    assert list(now) == list(before)


def test_page_in_the_repository_is_what_the_results_render_to() -> None:
    """docs/benchmarks.md is bench/results/latest.json and bench/notes.md, and nothing else."""
    results = json.loads(_RESULTS.read_text(encoding="utf-8"))

    assert page.render(results, FIGURES, _NOTES.read_text(encoding="utf-8")) == _PAGE.read_text(encoding="utf-8")


def test_results_in_the_repository_are_of_a_full_run() -> None:
    """What is published was measured in full, for every figure, and its verdicts follow from its samples."""
    results = json.loads(_RESULTS.read_text(encoding="utf-8"))
    records = _measure_records(results)

    assert not results["is_quick"]
    assert set(results["figures"]) == {figure.name for figure in FIGURES}
    assert [read_measure(record).as_json() for record in records] == records


def test_ratio_is_judged_pair_by_pair() -> None:
    """The median of the paired ratios counts: a machine that slows down in mid-run takes both sides along."""
    sides = {"ours": [1.0, 2.0, 30.0], "other": [2.0, 4.0, 40.0]}
    measure = Measure("name", "title", "ms", sides, Judge.PAIRED_RATIO, Bar(0.5))

    assert measure.ratios == [0.5, 0.5, 0.75]
    assert measure.value == 0.5
    assert measure.ratio_of_medians == 0.5
    assert measure.verdict is Verdict.MET


@pytest.mark.parametrize(
    ("judge", "bar", "samples", "expected"),
    [
        (Judge.SHARE_OF_ZEROS, Bar(95, is_floor=True), [0] * 95 + [3] * 5, Verdict.MET),
        (Judge.SHARE_OF_ZEROS, Bar(95, is_floor=True), [0] * 94 + [3] * 6, Verdict.MISSED),
        (Judge.LARGEST, Bar(1300), [1000, 1300], Verdict.MET),
        (Judge.LARGEST, Bar(1300), [1000, 1000, 1301], Verdict.MISSED),
        (Judge.P99, Bar(5), [5] * 99 + [80], Verdict.MET),
        (Judge.P99, Bar(5), [5] * 98 + [6, 80], Verdict.MISSED),
        (Judge.P99, Bar(5), [6], Verdict.MISSED),
        (Judge.MEDIAN, Bar(16), [15, 16, 99], Verdict.MET),
        (Judge.MEDIAN, Bar(16), [15, 17, 99], Verdict.MISSED),
        (Judge.MEDIAN, None, [1], Verdict.NO_BAR),
    ],
)
def test_verdict_is_by_the_number_that_the_judge_names(
    judge: Judge, bar: Bar | None, samples: list[float], expected: Verdict
) -> None:
    """Each judge takes its own number, and a bar admits what lies on it, from above or from below."""
    measure = Measure("name", "title", "unit", {"ours": samples}, judge, bar)

    assert measure.verdict is expected


def test_peers_are_never_let_loose() -> None:
    """earlyoom cannot be started without its dry run, nor nohang as a daemon: they would see the bench's victims."""
    with pytest.raises(StageError, match="dryrun"):
        peers._earlyoom(("-m", "50"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).__enter__()
    with pytest.raises(StageError, match="daemon"):
        peers._run_nohang("--monitor")


def test_parts_name_every_figure_once() -> None:
    """``python -m bench reap`` and ``python -m bench watch`` measure all figures together, and none twice."""
    names = [name for part in ("reap", "watch") for name in _parse([part]).figure]

    assert sorted(names) == sorted(figure.name for figure in FIGURES)


def test_nobody_may_ask_for_no_repeats() -> None:
    """``--repeats 0`` is refused before anything is started."""
    command = [sys.executable, "-m", "bench", "--repeats", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)

    assert done.returncode == 2
    assert "--repeats" in done.stderr


def _measure_records(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [measure for record in results["figures"].values() for measure in record["measures"]]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
