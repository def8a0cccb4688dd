"""Shares with their intervals as a Markdown table and as a drawing (SVG). Pure, and the same text for the same numbers.

The drawing is a row of strips for each workload, one for each killer: a bar as long as the share, a line over it for
its interval, and the share in words, so that it can be read without colours too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oomreaper.sim.experiments.intervals import Share

    Shares = Mapping[tuple[str, str], Share]  # by workload and killer

_WIDTH, _LEFT, _RIGHT, _TOP, _STRIP, _GAP, _FOOT = 900, 330, 150, 46, 15, 16, 34
_FONT = "font-family='sans-serif' font-size='12'"
# Told apart by lightness as well as by hue, also by who sees few colours.
_COLOURS = ("#8c8c8c", "#b2182b", "#ef8a62", "#67a9cf", "#2166ac", "#053061")
_TEXT, _RULE = "#333333", "#cccccc"


def as_table(shares: Shares, workloads: Mapping[str, str], killers: Sequence[str]) -> str:
    """Rows are workloads (name to what it is, in words), columns killers."""
    lines = [["workload", *killers], ["---"] * (len(killers) + 1)]
    lines += [
        [f"`{name}`: {about}", *(str(shares[name, killer]) for killer in killers)] for name, about in workloads.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def as_svg(shares: Shares, workloads: Mapping[str, str], killers: Sequence[str], *, title: str) -> str:
    """The drawing."""
    block = len(killers) * _STRIP + _GAP
    height = _TOP + len(workloads) * block + _FOOT
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' {_FONT} fill='{_TEXT}'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{_WIDTH}' height='{height}' fill='white'/>",
        f"<text x='12' y='22' font-size='15'>{escape(title)}</text>",
    ]
    bottom = _TOP + len(workloads) * block - _GAP / 2
    for percent in (0, 25, 50, 75, 100):
        x = _x(percent / 100)
        parts.append(f"<line x1='{x:.1f}' y1='{_TOP - 6}' x2='{x:.1f}' y2='{bottom:.1f}' stroke='{_RULE}'/>")
        parts.append(f"<text x='{x:.1f}' y='{bottom + 18:.1f}' text-anchor='middle'>{percent} %</text>")
    for row, name in enumerate(workloads):
        top = _TOP + row * block
        parts.append(f"<text x='12' y='{top + 11}' font-weight='bold'>{escape(name)}</text>")
        for number, killer in enumerate(killers):
            parts += _strip(shares[name, killer], killer, top + number * _STRIP, _COLOURS[number % len(_COLOURS)])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _strip(share: Share, killer: str, top: int, colour: str) -> list[str]:
    low, high = share.interval
    end, middle = _x(share.value or 0.0), top + _STRIP / 2 - 1
    return [
        f"<text x='{_LEFT - 8}' y='{top + 11}' text-anchor='end'>{escape(killer)}</text>",
        f"<rect x='{_LEFT}' y='{top + 1}' width='{max(end - _LEFT, 0.5):.1f}' height='{_STRIP - 4}' fill='{colour}'/>",
        f"<line x1='{_x(low):.1f}' y1='{middle:.1f}' x2='{_x(high):.1f}' y2='{middle:.1f}' stroke='{_TEXT}'/>",
        f"<text x='{_WIDTH - _RIGHT + 12}' y='{top + 11}'>{escape(str(share))}</text>",
    ]


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
