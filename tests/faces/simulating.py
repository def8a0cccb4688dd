"""``oomreaper simulate`` as a process of its own: ``python -m tests.faces.simulating run healthy …``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from oomreaper.errors import OomreaperError
from oomreaper.faces import simulate

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """As ``faces.cli.main`` does it."""
    parser = argparse.ArgumentParser(prog="oomreaper")
    simulate.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["simulate", *words])
    try:
        return int(arguments.run(arguments))
    except OomreaperError as error:
        sys.stderr.write(f"oomreaper: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
