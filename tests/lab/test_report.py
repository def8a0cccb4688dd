"""The report: what it says of the records, the losses as plainly as the wins."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from lab.page import as_html, as_markdown, make_blocks, show_ms
from lab.records import append_record
from lab.report import main
from lab.table import STALL, TO_KILL, make_tables
from tests.lab.recorded import make_record

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from lab.records import Record


def _ours(*stalls: float, **changes: object) -> list[Record]:
    return [make_record(repeat=n, longest_stall_ms=stall, **changes) for n, stall in enumerate(stalls, start=1)]


def _earlyoom(*stalls: float, **changes: object) -> list[Record]:
    return [record._replace(contestant="earlyoom") for record in _ours(*stalls, **changes)]


def test_a_cell_is_a_median_and_how_far_the_runs_lie_apart() -> None:
    """Never a single number; runs without the time are counted."""
    records = [*_ours(100, 300, 200), make_record(repeat=4, longest_stall_ms=900, shortage_to_kill_ms=None)]
    (table,) = make_tables(records)
    cell = table.cells["leak_fast", "oomreaper"]

    assert cell.spread(STALL) == (250, 100, 900, 4, 0)
    assert cell.spread(TO_KILL) == (40, 40, 40, 3, 1)
    assert cell.recovered == 4


def test_kernels_and_images_are_apart() -> None:
    """What ran on different machines is not compared; the newest comes first."""
    records = [make_record(), make_record(kernel="6.1"), make_record(image="small"), make_record(kernel="6.12")]
    places = [(table.place.kernel, table.place.image) for table in make_tables(records)]

    assert places == [("newest", "full"), ("newest", "small"), ("6.12", "full"), ("6.1", "full")]


def test_every_loss_is_listed() -> None:
    """A longer stall, a machine that did not recover, an innocent: each by itself, with who does better."""
    records = [
        *_ours(500, recovered=False, innocent_kills=2),
        *_earlyoom(100),
    ]
    losses = [loss for table in make_tables(records) for loss in table.losses()]

    assert [(loss.what, loss.ours, loss.theirs, loss.who) for loss in losses] == [
        ("innocents killed a run", "2", "0", "earlyoom"),
        ("runs recovered, per cent", "0", "100", "earlyoom"),
        ("longest stall, ms", "500", "100", "earlyoom"),
    ]


def test_a_difference_that_the_probe_cannot_see_is_no_loss() -> None:
    """Two heartbeats; one more is."""
    (near,) = make_tables([*_ours(140), *_earlyoom(100)])
    (far,) = make_tables([*_ours(141), *_earlyoom(100)])

    assert near.losses() == []
    assert len(far.losses()) == 1


def test_who_never_recovers_does_not_stall_less() -> None:
    """A machine that was lost early had no time to stall."""
    (table,) = make_tables([*_ours(500), *_earlyoom(10, recovered=False)])

    assert table.losses() == []


def test_the_page_says_the_losses_first_and_names_versions_and_settings() -> None:
    """And both forms of it say the same."""
    blocks = make_blocks([*_ours(500, broken=("the machine did not recover",)), *_earlyoom(100)])
    page, html = as_markdown(blocks), as_html(blocks)

    for text in (page, html):
        assert text.index("Where another is better than ours") < text.index("How it is measured")
        assert "the machine did not recover" in text
        assert "/etc/default/earlyoom as packaged" in text
        assert "longest stall, ms" in text
    assert "![longest stall of an ordinary program](lab-newest-full.svg)" in page
    assert "<svg" in html


def test_the_page_does_not_claim_what_was_not_run() -> None:
    """Without another there is nothing to compare; without records there is no page to speak of."""
    assert "nothing to compare" in as_markdown(make_blocks([make_record()]))
    assert "Ours has not been run" in as_markdown(make_blocks(_earlyoom(100)))
    assert "no records yet" in as_markdown(make_blocks([]))


def test_hostile_names_do_not_break_the_page() -> None:
    """Markup in a version or a reason is shown, not obeyed; a bar does not split a cell."""
    blocks = make_blocks([make_record(version="<script>1</script>", broken=("a|b",))])

    assert "<script>" not in as_html(blocks)
    assert "a\\|b" in as_markdown(blocks)


def test_the_drawing_has_a_dot_for_each_run_and_can_be_parsed() -> None:
    """Hollow when it did not recover, crossed when an innocent died."""
    blocks = make_blocks([*_ours(100, 200), make_record(repeat=3, recovered=False, innocent_kills=1)])
    (drawing,) = (block for block in blocks if type(block).__name__ == "Drawing")
    root = ET.fromstring(drawing.svg)  # type: ignore[union-attr] # a Drawing
    dots = [dot for dot in root.iter("{http://www.w3.org/2000/svg}circle") if len(dot)]
    crosses = list(root.iter("{http://www.w3.org/2000/svg}path"))

    assert len(dots) == 3
    assert sum(dot.get("fill") == "none" for dot in dots) == 1
    assert len(crosses) == 1


def test_times_are_in_ms_below_a_second() -> None:
    """And in seconds above."""
    assert [show_ms(value) for value in (0.4, 999, 1000, 61_234)] == ["0 ms", "999 ms", "1.0 s", "61.2 s"]


def test_the_command_writes_page_drawings_and_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the folder that it is given; its exit status is 1 when a record cannot be read."""
    results = tmp_path / "results"
    append_record(make_record(), results)
    arguments = [
        "--results", str(results), "--page", str(tmp_path / "docs/lab.md"), "--html", str(tmp_path / "lab.html")
    ]  # fmt: skip

    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["lab-newest-full.svg", "lab.md"]
    assert (tmp_path / "lab.html").is_file()
    (results / "newest.jsonl").write_text("{}\n", encoding="ascii")
    assert main(arguments) == 1
    assert "newest.jsonl:1" in capsys.readouterr().err
