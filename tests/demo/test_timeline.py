"""The chart: what it shows, on wide and narrow terminals, with and without blocks and colour."""

from __future__ import annotations

import re

import pytest

from oomreaper.demo.timeline import Mark, Sample, can_draw_blocks, render

MIB = 1 << 20
SIZE_BYTES = 64 * MIB
# Empty, full from -0.2 s on, empty from 1.0 s on: 1.5 s in all.
SAMPLES = [Sample(-0.3, 0), Sample(-0.2, SIZE_BYTES), Sample(1.0, 0), Sample(1.2, 0)]
MARKS = [Mark(0.0, "SIGKILL 0.0 s"), Mark(1.0, "reaped 1.0 s")]
ESCAPE = re.compile(r"\x1b\[\d+m")


def draw(
    *,
    width: int = 67,
    use_unicode: bool = False,
    use_color: bool = False,
    samples: list[Sample] = SAMPLES,
    marks: list[Mark] = MARKS,
) -> list[str]:
    """The chart of a victim of 64 MiB."""
    return render(samples, marks, scale_bytes=SIZE_BYTES, width=width, use_unicode=use_unicode, use_color=use_color)


def test_the_whole_chart() -> None:
    """Bars stand where memory was held, the axis names the unit, and each mark stands beneath its moment."""
    assert draw() == [
        "   64 |    ################################################",
        "  MiB |    ################################################",
        "      |    ################################################",
        "      |    ################################################",
        "      |    ################################################",
        "    0 +-----------+----------------------------------------+-------",
        "                  ^ SIGKILL 0.0 s             reaped 1.0 s ^",
    ]


@pytest.mark.parametrize("use_unicode", [False, True])
def test_height_is_memory(use_unicode: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """A tenth more memory is never drawn lower, nothing is drawn as nothing, and all is drawn to the top."""
    heights = []
    for tenths in range(11):
        held = [Sample(0.0, SIZE_BYTES * tenths // 10), Sample(1.0, SIZE_BYTES * tenths // 10)]
        column = [line[20:21] for line in draw(samples=held, marks=[], use_unicode=use_unicode)[:5]]
        heights.append(sum(" .:#".find(cell) if cell in " .:#" else ord(cell) - 0x2580 for cell in column if cell))

    assert heights == sorted(heights)
    assert heights[0] == 0
    assert heights[10] == 5 * (8 if use_unicode else 3)
    assert len(set(heights)) == 11


@pytest.mark.parametrize("use_unicode", [False, True])
@pytest.mark.parametrize("width", [22, 30, 40, 52, 80, 100])
def test_no_line_is_wider_than_the_terminal(width: int, use_unicode: bool) -> None:  # noqa: FBT001 - as above
    """Down to 22 columns every line fits, and every mark is still named."""
    lines = draw(width=width, use_unicode=use_unicode)

    assert max(map(len, lines)) <= width
    assert sum(mark.label in line for mark in MARKS for line in lines) == len(MARKS)


def test_labels_never_overlap() -> None:
    """At 40 columns two labels that would meet stand on a line each, both at their pointers."""
    lines = draw(width=40)

    labels = lines[6:]
    assert [label.strip() for label in labels] == ["^ SIGKILL 0.0 s", "reaped 1.0 s ^"]
    axis = lines[5]
    ticks = [column for column, char in enumerate(axis) if char == "+"][1:]
    assert ticks == [label.index("^") for label in labels]


def test_without_blocks_it_is_plain_ascii() -> None:
    """A terminal that knows ASCII only is sent nothing else."""
    assert "\n".join(draw()).isascii()


def test_blocks_are_drawn_only_where_the_encoding_has_them() -> None:
    """UTF-8 draws blocks; ASCII, Latin-1, an unknown encoding and none do not."""
    able = {encoding: can_draw_blocks(encoding) for encoding in ("utf-8", "ascii", "iso8859-1", "no-such", None)}

    assert able == {"utf-8": True, "ascii": False, "iso8859-1": False, "no-such": False, None: False}
    assert "█" in "\n".join(draw(use_unicode=True))


def test_colour_adds_and_changes_nothing() -> None:
    """With the escapes taken out, the coloured chart is the plain one; what was held in vain is red."""
    coloured = draw(use_color=True)

    assert [ESCAPE.sub("", line).rstrip() for line in coloured] == draw()
    assert "\x1b[31m" + "#" * 40 in coloured[0]


def test_colour_lasts_to_the_last_mark() -> None:
    """With more than two marks, what was held from the first to the last is red."""
    marks = [Mark(0.0, "noticed 0.0 s"), Mark(0.5, "SIGKILL 0.5 s"), Mark(1.0, "reaped 1.0 s")]

    assert "\x1b[31m" + "#" * 40 in draw(use_color=True, marks=marks)[0]


def test_one_moment_is_no_division_by_zero() -> None:
    """A single sample is drawn, not divided by."""
    assert draw(samples=[Sample(0.0, SIZE_BYTES)])[0].endswith("#")


def test_more_than_the_scale_stays_within_the_chart() -> None:
    """A victim that holds more than it was asked to is drawn to the top, in as many lines."""
    assert len(draw(samples=[Sample(0.0, 3 * SIZE_BYTES), Sample(1.0, 3 * SIZE_BYTES)])) == len(draw())
