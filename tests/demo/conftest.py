"""What the tests of the demo share."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

import pytest

from tests.victims import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def orphans() -> Iterator[Callable[[], list[str]]]:
    """Who is left when a demo has gone: its children are given to us, whatever has become of their memory."""
    libc = ctypes.CDLL(None)
    before = set(processes.children_of(os.getpid()))

    def find() -> list[str]:
        found = set(processes.children_of(os.getpid())) - before
        return [f"{pid} {processes.status_fields(pid).get('Name')} {processes.states(pid)}" for pid in sorted(found)]

    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield find
    for pid in set(processes.children_of(os.getpid())) - before:
        processes.kill_exactly(pid, processes.start_time_ticks(pid))
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
