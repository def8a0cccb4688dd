"""``python -m lab report``: docs/lab.md, its drawings, and one HTML file, from the records and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.page import as_html, as_markdown, drawings, make_blocks
from lab.records import FOLDER, BadRecordError, read_records

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int:
    """Write the report; the exit status: 1 when a record cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m lab report", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of the records (default: lab/results)")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "lab.md", help="default: docs/lab.md")
    parser.add_argument("--html", type=Path, default=_ROOT / "build" / "lab.html", help="default: build/lab.html")
    options = parser.parse_args(arguments)
    try:
        written = write_report(options.results, page=options.page, html=options.html)
    except BadRecordError as error:
        print(f"lab report: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


def write_report(results: Path, *, page: Path, html: Path) -> list[Path]:
    """Write all files anew; which.

    Raises:
        BadRecordError: A record cannot be read; nothing is written.
    """
    blocks = make_blocks(read_records(results))
    files = {page: as_markdown(blocks), html: as_html(blocks)}
    files |= {page.parent / drawing.file: drawing.svg for drawing in drawings(blocks)}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)
