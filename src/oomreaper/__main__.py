"""``python3 -m oomreaper``: the command, for where no console script is installed."""

import sys

from oomreaper.faces.cli import main

if __name__ == "__main__":
    sys.exit(main())
