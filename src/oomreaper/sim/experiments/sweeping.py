"""The same thing for many seeds, on all cores; nothing that had finished is lost, whatever ends the sweep.

Each worker takes the next seed, does it, and appends its result to the sweep's file *itself*, with one write, before it
takes another. So a sweep that is killed at any moment has every finished seed in its file but for the ones that were
being done, and the next run of the same sweep does the others. The first line of the file says what was swept; a file
of something else is refused, not mixed up. A line that was cut short by a crash is no result: its seed is done again.

The workers are forked, ignore Ctrl-C (their parent ends them), and die with their parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import time
import traceback
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol

from oomreaper.errors import KernelError, UsageError
from oomreaper.linux.syscalls import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.sharedctypes import Synchronized

    Work = Callable[[int], Mapping[str, Any]]

_SCHEMA = 1
# A run that goes wrong is to fail, and not to take the machine along that it simulates to be out of memory. A run holds
# some tens of MiB (measured: 24).
_MOST_BYTES = 1 << 30
# And is to end: a run that is decided takes under a second.
_MOST_S = 60
# How often the parent looks how far its workers are: often enough for a bar, rare enough to cost nothing.
_LOOK_S = 0.2
# What a worker in the middle of a seed is given to finish it after Ctrl-C; a seed takes a few ms to a second.
_FINISH_S = 5.0


class Progress(Protocol):
    """Is told how far a sweep is."""

    def update(self, done: int, total: int) -> None:
        """So many seeds are done; called often."""

    def close(self) -> None:
        """There will be no more."""


class Silent:
    """Says nothing."""

    def update(self, done: int, total: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Store:
    """The finished seeds of one sweep: a file of JSON lines, or memory only when there is no path.

    Raises:
        UsageError: The file is that of another sweep, or no sweep's.
    """

    def __init__(self, path: str | None, head: Mapping[str, Any]) -> None:
        self.path = path
        self._head = {"kind": "sweep", "schema": _SCHEMA, **head}
        self._fd = _make_memory_file() if path is None else self._open(path)
        os.set_inheritable(self._fd, False)
        self._begin()

    def append(self, seed: int, result: Mapping[str, Any]) -> None:
        """One finished seed, in one write at the end of the file."""
        os.write(self._fd, json.dumps({**result, "seed": seed}).encode() + b"\n")

    def read(self) -> dict[int, dict[str, Any]]:
        """What is finished, by seed."""
        results: dict[int, dict[str, Any]] = {}
        for line in self._lines()[1:]:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("seed"), int):
                    results[record["seed"]] = record
        return results

    def close(self) -> None:
        """The file stays."""
        os.close(self._fd)

    def _open(self, path: str) -> int:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"the sweep's file {path!r} cannot be written: {error.strerror}") from error
        try:
            # Held by the workers, too: it ends with the last of them.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(f"another sweep is writing to the file {path!r}") from error
        return descriptor

    def _lines(self) -> list[bytes]:
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, size, 0).split(b"\n")

    def _begin(self) -> None:
        lines = self._lines()
        if lines == [b""]:
            os.write(self._fd, json.dumps(self._head).encode() + b"\n")
            return
        try:
            found = json.loads(lines[0])
        except ValueError:
            found = None
        if found != self._head:
            what = "another sweep's" if isinstance(found, dict) and found.get("kind") == "sweep" else "no sweep's"
            raise UsageError(f"the file {self.path!r} is {what}; give another one with --file, or remove it")
        if lines[-1]:
            os.write(self._fd, b"\n")  # cut short in the middle of a line: what follows is to be a line of its own


def _make_memory_file() -> int:
    descriptor = os.memfd_create("sweep")
    # Without it two workers that write at once would write to the same place.
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def sweep(
    seeds: Iterable[int], work: Work, store: Store, *, jobs: int, progress: Progress | None = None
) -> dict[int, dict[str, Any]]:
    """Do all seeds that the store does not have.

    Args:
        seeds: Which.
        work: Does one, in a worker; what it raises becomes the result ``{"error": …}``.
        store: Where the results are and go to.
        jobs: How many workers.
        progress: Is told.

    Returns:
        The results of these seeds, by seed.

    Raises:
        KernelError: A worker was killed by somebody.
        KeyboardInterrupt: Ctrl-C; what was finished is in the store.
    """
    wanted = list(seeds)
    finished = store.read()
    due = [seed for seed in wanted if seed not in finished]
    shown: Progress = Silent() if progress is None else progress
    if due:
        _run(due, work, store, jobs=min(jobs, len(due)), progress=shown, before=len(wanted) - len(due))
    shown.close()
    results = store.read()
    return {seed: results[seed] for seed in wanted if seed in results}


def _run(due: list[int], work: Work, store: Store, *, jobs: int, progress: Progress, before: int) -> None:
    context = multiprocessing.get_context("fork")
    following: Synchronized[int] = context.Value("q", 0)
    done: Synchronized[int] = context.Value("q", 0)
    total = before + len(due)
    workers = [
        context.Process(target=_work, args=(due, work, store, following, done), daemon=True) for _ in range(jobs)
    ]
    try:
        for worker in workers:
            worker.start()
        while living := [worker for worker in workers if worker.is_alive()]:
            progress.update(before + done.value, total)
            connection.wait([worker.sentinel for worker in living], timeout=_LOOK_S)
        progress.update(before + done.value, total)
    except BaseException:
        following.value = len(due)  # no worker takes another seed
        deadline_s = time.monotonic() + _FINISH_S
        for worker in workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        progress.close()
        raise
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join()
    lost = [worker.exitcode for worker in workers if worker.exitcode]
    if lost:
        raise KernelError(f"{len(lost)} of {jobs} workers died ({lost[0]}); run the sweep again, it goes on from there")


def _work(due: list[int], work: Work, store: Store, following: Synchronized[int], done: Synchronized[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _on_alarm)
    die_with_parent(signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    while True:
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= len(due):
            return
        seed = due[number]
        signal.alarm(_MOST_S)
        try:
            result: Mapping[str, Any] = work(seed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's result
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(limit=-5)}
        finally:
            signal.alarm(0)
        store.append(seed, result)
        with done.get_lock():
            done.value += 1


def _on_alarm(_number: int, _frame: object) -> None:
    raise TimeoutError(f"no end after {_MOST_S} s")
