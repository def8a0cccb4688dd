"""What the watcher refuses at its start, and how its errors are told; the whole of it runs in ``tests.real``."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from oomreaper.config.load import load_plan
from oomreaper.errors import BrokenPromiseError, KernelError, UsageError
from oomreaper.watch import start
from oomreaper.watch.plan import encode_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN, _ = load_plan(None)


@pytest.fixture
def memory_file() -> Iterator[int]:
    """Not sealed yet."""
    descriptor = os.memfd_create("oomreaper-test-plan", os.MFD_ALLOW_SEALING)
    yield descriptor
    try:
        os.close(descriptor)
    except OSError as error:
        assert error.errno == errno.EBADF  # noqa: PT017 - the plan's reader closes it


def test_a_sealed_plan_is_read_wherever_its_offset_stands(memory_file: int) -> None:
    """It is the plan that was written, also when somebody has read the file before; the file is closed then."""
    os.write(memory_file, encode_plan(PLAN))
    fcntl.fcntl(memory_file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    assert start._read_plan([str(memory_file)]) == PLAN
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory_file)


def test_a_plan_that_is_not_sealed_is_not_read(memory_file: int) -> None:
    """It could be changed after it was checked."""
    os.write(memory_file, encode_plan(PLAN))

    with pytest.raises(BrokenPromiseError, match="not sealed"):
        start._read_plan([str(memory_file)])


@pytest.mark.parametrize("arguments", [[], ["-1"], ["x"], ["1e3"], ["9" * 30], ["1000000"], ["0x3"]])
def test_what_names_no_descriptor_is_refused(arguments: list[str]) -> None:
    """One clear error, whatever stands there."""
    with pytest.raises(BrokenPromiseError, match="start it by: oomreaper run"):
        start._read_plan(arguments)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KernelError("no /proc"), 3, "oomreaper: no /proc"),
        (UsageError("no"), 2, "oomreaper: no"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "the kernel refused what is needed here"),
        (MemoryError(), 3, "the kernel refused what is needed here: MemoryError"),
        (BrokenPromiseError("a hunt twice"), 70, "a fault of ours, please report it: BrokenPromiseError: a hunt twice"),
        (ZeroDivisionError("x"), 70, "a fault of ours, please report it: ZeroDivisionError: x"),
    ],
)
def test_each_end_has_its_status_and_its_line(
    error: Exception, status: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel's refusals are 3, our faults 70 with the way to them, line by line."""
    try:
        raise error
    except type(error) as raised:
        told = start._tell_end(raised)
    lines = capfd.readouterr().err.splitlines()

    assert told == status
    assert words in lines[0]
    assert (len(lines) > 1) == (status == 70)


def test_descriptors_are_allowed_for_what_is_kept_open() -> None:
    """The soft limit goes up to what is needed, as far as the hard one lets it; fewer than 128 are too few."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 4096))
            start._raise_descriptor_limit()
            is_raised = resource.getrlimit(resource.RLIMIT_NOFILE) == (4096, 4096)
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
            try:
                start._raise_descriptor_limit()
            except KernelError:
                status = 0 if is_raised else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)

    assert status == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_the_wall_clock_is_for_the_record_only() -> None:
    """Whoever sets it, back or forward: of what decides, waits or reaps nobody reads it, but who writes the record."""
    package = Path(start.__file__).parent.parent
    readers = {
        str(path.relative_to(package))
        for room in ("policy", "reaper", "watch", "linux")
        for path in (package / room).rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\(|CLOCK_REALTIME|datetime\.now", path.read_text(encoding="utf-8"))
    }

    assert readers == {"watch/records.py", "watch/start.py", "watch/voice.py"}
