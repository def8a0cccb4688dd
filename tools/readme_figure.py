"""Write the README's figure from bench/results/latest.json, between its two markers (``make docs``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
README = _ROOT / "README.md"
_RESULTS = _ROOT / "bench" / "results" / "latest.json"
_BEGIN, _END = "<!-- figure: made by `make docs` -->\n", "<!-- end of figure -->\n"
_STUCK = (
    ("stuck-inode-lock", "waits for an inode's lock, in uninterruptible sleep"),
    ("stuck-fuse", "waits for a FUSE server that never answers"),
    ("stuck-frozen", "stands in a frozen cgroup (v1)"),
    ("stuck-parked", "is parked in its exit by a tracer"),
)


def render() -> str:
    """The table, as Markdown."""
    figures = json.loads(_RESULTS.read_text(encoding="utf-8"))["figures"]
    stuck, healthy = _by_name(figures["stuck"]), _by_name(figures["healthy"])
    rows = [
        "| a victim of 1 GiB that … | SIGKILL alone | `oomreaper`: kill to memory verified back |",
        "|---|---|---|",
        *(f"| {what} | never | **{_median_ms(stuck[name], 'reaped')} ms**, still stuck |" for name, what in _STUCK),
    ]
    seen = healthy["healthy-1024-own"]
    rows.append(
        f"| can die | {_median_ms(seen, 'SIGKILL alone')} ms | **{_median_ms(seen, 'reaped')} ms** "
        f"(median of the paired ratios: {seen['value']:.2f}) |"
    )
    return "\n".join(rows) + "\n"


def readme_with_figure(text: str) -> str:
    """The README with the figure between its markers."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + "\n" + render() + "\n" + _END + after


def _by_name(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {measure["name"]: measure for measure in figure["measures"]}


def _median_ms(measure: dict[str, Any], side: str) -> int:
    value: float = measure["sides"][side]["summary"]["median"]
    return round(value)


if __name__ == "__main__":
    README.write_text(readme_with_figure(README.read_text(encoding="utf-8")), encoding="utf-8")
