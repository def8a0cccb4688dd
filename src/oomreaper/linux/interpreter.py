"""A small Python process of our own: how one is started, wherever this package lies (also inside a zip file)."""

from __future__ import annotations

import os
import sys

from oomreaper.errors import KernelError

# The folder or archive that holds the package, three levels above this file.
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def python_command(program: str, *arguments: str) -> list[str]:
    """The command line of a Python that runs ``program`` with this package at hand and ``arguments`` in argv[1:].

    The package's folder is appended to the path, not put first: it may be site-packages, which shall not shadow the
    standard library. ``-I -S``: no site packages and nothing of the user's environment, and it starts 20 ms sooner.

    Raises:
        KernelError: This program has no interpreter to start (it is frozen, or embeds Python).
    """
    if not sys.executable or getattr(sys, "frozen", False):
        # A frozen program's executable is the program itself: it would be started once more, not Python.
        raise KernelError("this program has no Python interpreter to start")
    find_package = "import sys; sys.path.append(sys.argv.pop(1)); "
    return [sys.executable, "-I", "-S", "-c", find_package + program, _PACKAGE_ROOT, *arguments]
