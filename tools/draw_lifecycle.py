"""Write docs/lifecycle.dot from the table, and draw it as docs/lifecycle.svg with Graphviz (``make docs``)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from oomreaper.reaper.lifecycle import as_dot

_DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    """Write both files."""
    source = _DOCS / "lifecycle.dot"
    source.write_text(as_dot(), encoding="utf-8")
    subprocess.run(["dot", "-Tsvg", "-o", str(_DOCS / "lifecycle.svg"), str(source)], check=True)


if __name__ == "__main__":
    main()
