"""A small Python process of our own: how one is started, wherever this package lies (also inside a zip file).

Also what such a process may not take for granted: that there is a stdin, a stdout and a stderr.
"""

from __future__ import annotations

import os
import sys

from oomreaper.errors import KernelError

# The folder or archive that holds the package, three levels above this file.
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_FIND_PACKAGE = "import sys; sys.path.append(sys.argv.pop(1)); "


def python_command(program: str, *arguments: str) -> list[str]:
    """The command line of a Python that runs ``program`` with this package at hand and ``arguments`` in argv[1:].

    The package's folder is appended to the path, not put first: it may be site-packages, which shall not shadow the
    standard library. ``-I -S``: no site packages and nothing of the user's environment, and it starts 20 ms sooner.
    ``no_debug_ranges``: code keeps its line numbers and not its columns; watcher and workers are 0.3 MiB smaller
    (2026-11).

    Raises:
        KernelError: This program has no interpreter to start (it is frozen, or embeds Python).
    """
    options = ("-I", "-S", "-X", "no_debug_ranges")
    return [_find_interpreter(), *options, "-c", _FIND_PACKAGE + program, _PACKAGE_ROOT, *arguments]


def oomreaper_command(*arguments: str) -> list[str]:
    """The command line of an ordinary ``oomreaper`` with these arguments: this package, and the site's libraries.

    Raises:
        KernelError: As ``python_command``.
    """
    program = _FIND_PACKAGE + "from oomreaper.faces.cli import main; sys.exit(main(sys.argv[1:]))"
    return [_find_interpreter(), "-I", "-c", program, _PACKAGE_ROOT, *arguments]


def fill_standard_descriptors() -> None:
    """Have something stand at 0, 1 and 2: what is opened next would be taken for stdin, stdout or stderr otherwise.

    Raises:
        OSError: There is no /dev/null.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _find_interpreter() -> str:
    if not sys.executable or getattr(sys, "frozen", False):
        # A frozen program's executable is the program itself: it would be started once more, not Python.
        raise KernelError("this program has no Python interpreter to start")
    return sys.executable
