"""The acts of one victim: in a state from which SIGKILL cannot take it, killed, watched, reaped, let go.

``perform`` is the course that all acts share; a ``Trap`` is what differs: how the victim comes to be unable to die.

1. Arm the trap and make the victim; whatever this machine refuses, it refuses here, before any memory is filled.
2. Fill, and spring the trap.
3. SIGKILL, and one second in which the memory should have come back.
4. Reap, with the engine of ``oomreaper reap``.
5. Let the victim go, and see it end.
"""

from __future__ import annotations

import errno
import tempfile
import time
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from oomreaper.demo.victims import Helper, RoleFailedError, Stage, undisturbed
from oomreaper.errors import KernelError
from oomreaper.model.event import Event, EventKind
from oomreaper.watch.errand import Errand, make_settings

if TYPE_CHECKING:
    from oomreaper.model.outcome import Outcome

_NS_IN_MS = 1_000_000
# How long SIGKILL is given to free the memory; an ordinary exit of 512 MiB takes 45 ms (KERNEL.md, section 5).
HOLD_NS = 1_000 * _NS_IN_MS
# What is shown before the fill and after the reap, for the eye.
_MARGIN_NS = 200 * _NS_IN_MS
# How soon a victim stands where the trap holds it: 1 ms here (2026-11).
_STATE_LIMIT_NS = 2_000 * _NS_IN_MS
_END_LIMIT_NS = 5_000 * _NS_IN_MS
# The meter looks every 5 ms and speaks every 50; later than this, it is not being run.
_METER_LIMIT_NS = 5_000 * _NS_IN_MS
_REAP_TIMEOUT_SECONDS = 15.0
# The interpreter's own memory is 1 % of the default victim's; the rest of the tenth is tolerance.
_MOST_PERCENT, _LITTLE_PERCENT = 90, 10


class SkippedError(Exception):
    """This machine does not let the act be played; the text says why, and what to do."""


class Moment(NamedTuple):
    """What was held at a monotonic moment."""

    at_ns: int
    held_bytes: int


class Listener(Protocol):
    """Who is told what happens, as it happens; every time is monotonic."""

    def on_begin(self, trap: Trap, pid: int, at_ns: int) -> None:
        """The victim is there and is about to fill its memory."""

    def on_sample(self, moment: Moment) -> None:
        """It holds that much."""

    def on_killed(self, state: State, at_ns: int) -> None:
        """It was sent SIGKILL, and stands in ``state`` now."""

    def on_reaping(self, held_bytes: int) -> None:
        """The second is over, and that much still held; the reaper starts."""

    def on_outcome(self, outcome: Outcome, at_ns: int) -> None:
        """The reaper is done; what follows is what the victim holds after it."""

    def on_performed(self, performance: Performance) -> None:
        """Everything has been seen; the victim still stands where it stood."""

    def on_released(self, act: Act, ended_after_ns: int | None, at_ns: int) -> None:
        """The trap was opened, and the victim ended that much later; None: it did not."""


class State(NamedTuple):
    """Where the victim stands: the letter of /proc/PID/stat, and the function of the kernel where that is told."""

    letter: str
    wchan: str | None


class Performance(NamedTuple):
    """All that is to be known of an act that was played."""

    size_bytes: int
    moments: list[Moment]
    killed_ns: int
    held_bytes: int
    reaped_ns: int
    left_bytes: int
    outcome: Outcome

    @property
    def has_stayed(self) -> bool:
        """Whether SIGKILL freed nothing to speak of."""
        return self.held_bytes * 100 >= self.size_bytes * _MOST_PERCENT

    @property
    def has_come_back(self) -> bool:
        """Whether the reap freed all but little, by its own word and by what the meter saw."""
        is_success = self.outcome.kind is not None and self.outcome.kind.is_success
        return is_success and self.left_bytes * 100 <= self.size_bytes * _LITTLE_PERCENT

    @property
    def is_shown(self) -> bool:
        """Whether the act showed what it is for."""
        return self.has_stayed and self.has_come_back

    @property
    def needs_permission(self) -> bool:
        """Whether other rights or another kernel would have changed the end."""
        return self.outcome.needs_permission


class Act(Protocol):
    """What an act is called, and how its victim is let go."""

    name: str
    title: str
    release: str


class Trap(Act, Protocol):
    """A way to keep a process from dying."""

    @property
    def victim_file(self) -> IO[bytes] | None:
        """A file that the victim must have open."""

    def arm(self, stage: Stage) -> None:
        """Prepare; raises ``RoleFailedError``."""

    def attach(self, stage: Stage, victim: Helper) -> None:
        """Put it around the victim, which is idle and has not filled its memory; raises ``RoleFailedError``."""

    def spring(self, stage: Stage, victim: Helper) -> None:
        """Bring the full victim into its state; raises ``RoleFailedError``."""

    def explain(self, failure: RoleFailedError) -> str:
        """Why this machine does not let it be, and what to do."""

    def open(self) -> None:
        """Let the victim go."""

    def close(self) -> None:
        """Give back what is no process."""


class ExitTrap:
    """A tracer that asked to be told of the victim's exit, and does not answer."""

    name = "exit"
    title = "a debugger stops the victim in the middle of its exit, and is idle"
    release = "the debugger lets go"
    victim_file = None
    _tracer: Helper

    def arm(self, stage: Stage) -> None:
        """Nothing: a tracer needs its tracee."""

    def attach(self, stage: Stage, victim: Helper) -> None:
        """Have the tracer seize the victim."""
        pid, start_time_ticks = victim.target
        self._tracer = stage.start("tracer", str(pid), str(start_time_ticks))
        stage.expect(self._tracer, "attached")

    def spring(self, stage: Stage, victim: Helper) -> None:
        """Nothing: it springs with SIGKILL."""

    def explain(self, failure: RoleFailedError) -> str:
        """Name who may have refused it."""
        return (
            f"{say_refusal(failure)}; a sandbox forbids it, or /proc/sys/kernel/yama/ptrace_scope does: "
            "run it outside of the sandbox, set ptrace_scope to 1, or permit ptrace (docker run --cap-add SYS_PTRACE)"
        )

    def open(self) -> None:
        """The tracer ends, and with it the tracing."""
        self._tracer.dismiss()

    def close(self) -> None:
        """Nothing but processes."""


class LockTrap:
    """A file whose inode lock is held by a write that waits for a page; the victim wants to write to that file too.

    The case that the kernel's OOM reaper was written for: "blocked in the uninterruptible state waiting for an
    event (e.g. lock)".
    """

    name = "lock"
    title = "the victim waits for a file's lock; who holds it is stuck"
    release = "the lock's holder ends"
    victim_file: IO[bytes] | None = None
    _holder: Helper

    def arm(self, stage: Stage) -> None:
        """Have the holder stand in its write, with the lock."""
        try:
            self.victim_file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - ``close`` does
        except OSError as error:
            raise RoleFailedError("victim", "a temporary file", error.errno) from error
        file = self.victim_file.fileno()
        self._holder = stage.start("holder", str(file), files=(file,))
        stage.expect(self._holder, "parked")

    def attach(self, stage: Stage, victim: Helper) -> None:
        """Nothing: the file is open in the victim from its start."""

    def spring(self, stage: Stage, victim: Helper) -> None:
        """Have the victim write, and wait until it waits."""
        victim.order("write")
        if not stage.wait_for_state(victim, "D", time.monotonic_ns() + _STATE_LIMIT_NS):
            raise RoleFailedError("victim", f"two writes to one file in {tempfile.gettempdir()} did not wait")

    def explain(self, failure: RoleFailedError) -> str:
        """Name what it needs."""
        if failure.role == "victim":
            return f"{say_refusal(failure)}: try TMPDIR on another file system"
        return (
            f"{say_refusal(failure)}; it needs root (sudo oomreaper demo) and a sandbox that lets userfaultfd through"
        )

    def open(self) -> None:
        """The holder ends, and with it its write."""
        self._holder.dismiss()

    def close(self) -> None:
        """The file has no name; with its last descriptor it is gone."""
        if self.victim_file is not None:
            self.victim_file.close()


def perform(trap: Trap, size_bytes: int, listener: Listener) -> Performance:
    """Play one act.

    Raises:
        SkippedError: This machine does not permit it.
        KernelError: No process, no memory, or no reaper can be had here.
    """
    chronicle = _Chronicle(listener)
    try:
        with Stage(chronicle.on_sample) as stage:
            try:
                victim = _prepare(stage, trap, size_bytes, chronicle)
            except RoleFailedError as failure:
                raise SkippedError(trap.explain(failure)) from failure
            performance = _kill_and_reap(stage, victim, size_bytes, chronicle)
            listener.on_performed(performance)
            _release(stage, trap, victim, listener)
            return performance
    finally:
        trap.close()


class _Chronicle:
    """Keeps what the meter said and passes it on; in the order of time with what else happened."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.moments: list[Moment] = []
        self.is_paused = False
        self._told = 0

    def on_sample(self, at_ns: int, held_bytes: int) -> None:
        """The meter said so."""
        self.moments.append(Moment(at_ns, held_bytes))
        if not self.is_paused:
            self.tell_until(at_ns)

    def tell_until(self, at_ns: int) -> None:
        """Pass on what was held up to that moment."""
        while self._told < len(self.moments) and self.moments[self._told].at_ns <= at_ns:
            self.listener.on_sample(self.moments[self._told])
            self._told += 1


def _prepare(stage: Stage, trap: Trap, size_bytes: int, chronicle: _Chronicle) -> Helper:
    """The victim with its memory, in the trap."""
    trap.arm(stage)
    file = trap.victim_file
    files = () if file is None else (file.fileno(),)
    victim = stage.start("victim", str(size_bytes), *map(str, files), files=files)
    _expect(stage, victim, "made")
    trap.attach(stage, victim)
    chronicle.listener.on_begin(trap, victim.pid, time.monotonic_ns())
    pid, start_time_ticks = victim.target
    _expect(stage, stage.start("meter", str(pid), str(start_time_ticks)), "sample")
    _watch_until(stage, chronicle.moments, time.monotonic_ns() + _MARGIN_NS)
    victim.order("fill")
    _expect(stage, victim, "full")
    trap.spring(stage, victim)
    return victim


def _kill_and_reap(stage: Stage, victim: Helper, size_bytes: int, chronicle: _Chronicle) -> Performance:
    listener, moments = chronicle.listener, chronicle.moments
    chronicle.is_paused = True
    killed_ns = time.monotonic_ns()
    victim.kill()
    stage.wait_for_state(victim, "tDZ", killed_ns + _STATE_LIMIT_NS)
    chronicle.tell_until(killed_ns)
    listener.on_killed(State(victim.read_stat().state, victim.read_wchan()), killed_ns)
    chronicle.is_paused = False
    held_bytes = _watch_until(stage, moments, killed_ns + HOLD_NS)

    listener.on_reaping(held_bytes)
    settled_ns: list[int] = []

    def on_event(event: Event) -> None:
        if event.kind is EventKind.SETTLED:
            settled_ns.append(event.monotonic_ns)

    settings = make_settings(timeout_seconds=_REAP_TIMEOUT_SECONDS, coredump="abort")
    # A Ctrl-C waits for it, 0.3 s: between fork and its own first line a worker would take it for us.
    with undisturbed():
        (outcome,) = Errand([victim.target], settings, on_event=on_event).run()
    reaped_ns = settled_ns[-1] if settled_ns else time.monotonic_ns()
    chronicle.is_paused = True
    stage.catch_up()
    chronicle.tell_until(reaped_ns)
    listener.on_outcome(outcome, reaped_ns)
    chronicle.is_paused = False
    left_bytes = _watch_until(stage, moments, time.monotonic_ns() + _MARGIN_NS)
    return Performance(size_bytes, moments, killed_ns, held_bytes, reaped_ns, left_bytes, outcome)


def _release(stage: Stage, trap: Trap, victim: Helper, listener: Listener) -> None:
    opened_ns = time.monotonic_ns()
    trap.open()
    has_ended = stage.wait(lambda: victim.has_ended, opened_ns + _END_LIMIT_NS, look_every_ms=1)
    now_ns = time.monotonic_ns()
    listener.on_released(trap, now_ns - opened_ns if has_ended else None, now_ns)


def _expect(stage: Stage, helper: Helper, word: str) -> None:
    """As ``Stage.expect``, for what no machine should refuse."""
    try:
        stage.expect(helper, word)
    except RoleFailedError as failure:
        remedy = "; see ulimit -v and ulimit -d" if failure.number == errno.ENOMEM else ""
        raise KernelError(f"the demo cannot run here: {say_refusal(failure)}{remedy}") from failure


def _watch_until(stage: Stage, moments: list[Moment], until_ns: int) -> int:
    """Let time pass, and see what is held then: what was seen before says nothing."""
    if not stage.wait(lambda: moments[-1].at_ns >= until_ns, until_ns + _METER_LIMIT_NS):
        raise KernelError("the demo was given no CPU for seconds: this machine is too busy to show anything; try later")
    return moments[-1].held_bytes


def say_refusal(failure: RoleFailedError) -> str:
    """What was refused, and the kernel's word for it."""
    if failure.number is None:
        return failure.what
    return f"{failure.what} was refused: {errno.errorcode.get(failure.number, failure.number)}"
