"""Processes that sleep, for scans to go through; always ended, at the latest when we are."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING

from bench import others
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What is younger than this counts as grown by all it has, and is ranked for that; nobody starts 10,000 processes in so
# short a time but a fork bomb. (linux/census: two marks, 7.5 s apart.)
_YOUTH_S = 15.5
_LIMIT_S = 120.0


@contextlib.contextmanager
def sleepers(count: int, *, youth_s: float = _YOUTH_S) -> Iterator[None]:
    """So many processes that sleep; about 120 KiB of the kernel's memory and 20 of their own each.

    ``youth_s``: how long it is waited after they were made.

    Raises:
        StageError: They cannot be had (a limit on processes, say).
    """
    program = str(others.compiled("sleepers", "-static"))
    process = subprocess.Popen(
        [program, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            message = f"{count} sleeping processes could not be had; stderr says why"
            raise StageError(message)
        time.sleep(youth_s)
        yield
    finally:
        process.stdin.close()
        process.wait(_LIMIT_S)
        process.stdout.close()
