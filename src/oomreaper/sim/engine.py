"""Steps and time: actors that run a step at a time, one after the other, in an order that a chooser decides. Pure.

What it knows: who is runnable, who sleeps on what, which timers are set, what time it is. What it refuses to know: what
a step does. It drives the kernel's tasks (Python generators) and our own programs (greenlets) in the same way.

How it works:

1. An actor is resumed, does one atomic step, and says how it goes on: ``None`` (runnable), a number (runnable; the step
   took so many ns of CPU time instead of ``step_ns``), or a ``Wait`` (asleep until somebody wakes it).
2. Which runnable actor is next is the chooser's to say: every interleaving of steps is possible, and how long an actor
   stands between two steps is unbounded. Speeds relative to each other are not modelled, on purpose: a race that can be
   lost is to be lost sometimes.
3. Bands are the scheduler's classes. A FIFO actor that is runnable keeps a CPU to itself; what is left of the CPUs is
   shared by the NORMAL ones; an IDLE one runs when no NORMAL one wants that CPU.
4. Time goes on by what steps cost, divided by the CPUs at work, and jumps to the next timer when all sleep.
5. When all sleep and no timer is set, the run is over: ``Ending.STUCK``. ``diagnosis`` then says who waits for whom.

A generator that raises StopIteration has ended; any other exception ends the run and goes to whoever called ``run``.
"""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from oomreaper.sim.choice import Chooser

    Steps = Generator[Any, None, Any]

# A kernel path between two points where others can come in between: the order of a micro-second.
_STEP_NS = 1_000


class Band(enum.IntEnum):
    """The scheduler's classes, the first served first."""

    FIFO = 0
    NORMAL = 1
    IDLE = 2


class Ending(enum.Enum):
    """Why ``run`` came back."""

    DONE = "what was waited for has happened"
    QUIET = "every actor has ended, or rests"
    TIME = "the time is over"
    STEPS = "the steps are used up"
    STUCK = "everybody sleeps, and nothing will wake anybody"


class Wait:
    """What an actor can sleep on. ``letter`` is the state /proc shows meanwhile: S or D.

    A subclass says in ``park`` where the sleeper is kept, and in ``withdraw`` how it is taken out again.
    """

    __slots__ = ("is_interruptible", "is_killable", "letter", "name")

    def __init__(self, name: str, *, is_killable: bool = False, is_interruptible: bool = False) -> None:
        self.name = name
        self.is_killable = is_killable or is_interruptible
        self.is_interruptible = is_interruptible
        self.letter = "S" if is_interruptible else "D"

    def park(self, engine: Engine, actor: Actor) -> None:
        """The actor has gone to sleep on this."""

    def withdraw(self, actor: Actor) -> None:
        """The actor does not sleep on this any more, without having got it."""

    def waits_for(self) -> Iterable[object]:
        """For a diagnosis: the actors (or what stands for them) that must do something for this to come about."""
        return ()

    def describe(self) -> str:
        """For a diagnosis."""
        return self.name


class Sleep(Wait):
    """For some time, and no longer."""

    __slots__ = ("duration_ns",)

    def __init__(self, duration_ns: int, name: str = "a timer", *, is_interruptible: bool = True) -> None:
        super().__init__(name, is_interruptible=is_interruptible)
        self.duration_ns = duration_ns

    def park(self, engine: Engine, actor: Actor) -> None:
        """Set the timer."""
        engine.set_timer(actor, self.duration_ns)


class Signal(Wait):
    """Until ``wake_all`` (or ``wake_one``) is called; with ``timeout_ns``, no longer than that.

    Whoever is woken looks again at what it waited for: a wake-up is a hint.
    """

    __slots__ = ("_engine", "sleepers", "timeout_ns", "who")

    def __init__(
        self,
        name: str,
        *,
        is_killable: bool = False,
        is_interruptible: bool = False,
        timeout_ns: int | None = None,
        who: Callable[[], Iterable[object]] | None = None,
    ) -> None:
        super().__init__(name, is_killable=is_killable, is_interruptible=is_interruptible)
        self.sleepers: list[Actor] = []
        self.timeout_ns = timeout_ns
        self.who = who
        self._engine: Engine | None = None

    def park(self, engine: Engine, actor: Actor) -> None:
        """Keep it."""
        self._engine = engine
        self.sleepers.append(actor)
        if self.timeout_ns is not None:
            engine.set_timer(actor, self.timeout_ns)

    def withdraw(self, actor: Actor) -> None:
        """Out of the list."""
        self.sleepers.remove(actor)

    def waits_for(self) -> Iterable[object]:
        """Whoever its maker says."""
        return () if self.who is None else self.who()

    def wake_all(self) -> None:
        """Everybody."""
        while self.sleepers:
            self.wake_one()

    def wake_one(self) -> None:
        """Who has slept longest."""
        if self.sleepers and self._engine is not None:
            self._engine.wake(self.sleepers.pop(0))


class Rest(Signal):
    """Asleep of its own will, until somebody has work for it: whoever rests is not stuck."""

    __slots__ = ()

    def __init__(self, name: str = "work") -> None:
        super().__init__(name, is_interruptible=True)


class Actor:
    """Somebody who runs. ``resume`` does one step; ``owner`` is what it is an actor of, for those who know it."""

    __slots__ = (
        "band",
        "is_doomed",
        "is_over",
        "name",
        "owner",
        "position",
        "resume",
        "timer",
        "waits_for",
        "was_interrupted",
        "was_timed_out",
    )

    def __init__(self, name: str, resume: Callable[[], Any], band: Band, owner: Any) -> None:
        self.name = name
        self.resume = resume
        self.band = band
        self.owner = owner
        self.position = -1  # in the list of its band; -1: not runnable
        self.waits_for: Wait | None = None
        self.timer = 0  # the serial of the one that counts; 0: none
        self.was_interrupted = False  # by ``interrupt``, and not by what it waited for
        self.was_timed_out = False
        self.is_over = False
        self.is_doomed = False  # it has a fatal signal pending: no killable wait holds it

    @property
    def letter(self) -> str:
        """R, S or D, as /proc shows it."""
        return "R" if self.waits_for is None else self.waits_for.letter

    def __repr__(self) -> str:
        return self.name


class TraceLine(NamedTuple):
    """One step: its number, when, whose, and what it came to."""

    step: int
    now_ns: int
    actor: str
    what: str


class Engine:
    """Runs actors.

    Args:
        chooser: Says who is next.
        cpus: How many run at a time.
        step_ns: What a step costs that does not say.
    """

    def __init__(self, chooser: Chooser, *, cpus: int = 2, step_ns: int = _STEP_NS, start_ns: int = 0) -> None:
        self.chooser = chooser
        self.cpus = cpus
        self.now_ns = start_ns
        self.steps = 0
        self.current: Actor | None = None
        self.actors: list[Actor] = []
        self.trace: list[TraceLine] | None = None
        self.every_step: list[Callable[[], None]] = []  # dear: for small models only; see ``machine.Hooks``
        self._step_ns = step_ns
        self._ready: tuple[list[Actor], list[Actor], list[Actor]] = ([], [], [])
        self._timers: list[tuple[int, int, Actor | Callable[[], None]]] = []
        self._serial = 0
        self._is_done = False

    # -- actors --------------------------------------------------------------------------------------------

    def spawn(self, name: str, steps: Steps, *, band: Band = Band.NORMAL, owner: object = None) -> Actor:
        """Let a generator run; it is runnable at once."""
        return self.spawn_callable(name, steps.__next__, band=band, owner=owner)

    def spawn_callable(
        self, name: str, resume: Callable[[], Any], *, band: Band = Band.NORMAL, owner: object = None
    ) -> Actor:
        """Let something run that does one step when it is called, and raises StopIteration at its end."""
        actor = Actor(name, resume, band, owner)
        self.actors.append(actor)
        self._add(actor)
        return actor

    def runnable(self) -> list[Actor]:
        """Who could be next, bands left aside; for an explorer that calls ``step`` itself."""
        return [actor for band in self._ready for actor in band]

    @property
    def runnable_count(self) -> int:
        """How many are runnable."""
        fifo, normal, idle = self._ready
        return len(fifo) + len(normal) + len(idle)

    def wake(self, actor: Actor) -> None:
        """What it slept on has come about. Whoever keeps it has let go of it already."""
        if actor.waits_for is not None:
            actor.waits_for = None
            actor.timer = 0
            self._add(actor)

    def interrupt(self, actor: Actor) -> bool:
        """Wake it though what it sleeps on has not come about; it finds ``was_interrupted``. False: it was awake."""
        wait = actor.waits_for
        if wait is None:
            return False
        wait.withdraw(actor)
        actor.was_interrupted = True
        self.wake(actor)
        return True

    # -- time ----------------------------------------------------------------------------------------------

    def set_timer(self, actor: Actor, after_ns: int) -> None:
        """Wake a sleeping actor then, if it has not been woken by something else; it finds ``was_timed_out``."""
        self._serial += 1
        actor.timer = self._serial
        heapq.heappush(self._timers, (self.now_ns + after_ns, self._serial, actor))

    def call_later(self, after_ns: int, callback: Callable[[], None]) -> None:
        """Call something then, as an interrupt would: outside any actor, in one atomic step."""
        self._serial += 1
        heapq.heappush(self._timers, (self.now_ns + after_ns, self._serial, callback))

    def stop(self) -> None:
        """Have ``run`` come back after this step, with DONE."""
        self._is_done = True

    def chance(self, one_in: int) -> bool:
        """True once in so many times, by the chooser's word; never where ``one_in`` is 0."""
        return one_in > 0 and (one_in == 1 or self.chooser.choose(one_in) == one_in - 1)

    def note(self, what: str) -> None:
        """A line in the trace, of whoever runs now."""
        if self.trace is not None:
            actor = self.current
            self.trace.append(TraceLine(self.steps, self.now_ns, "-" if actor is None else actor.name, what))

    # -- running -------------------------------------------------------------------------------------------

    def step(self, actor: Actor) -> None:
        """One step of this runnable actor, without asking the chooser who."""
        share = min(self.cpus, self.runnable_count)
        self.current = actor
        self.steps += 1
        try:
            what = actor.resume()
        except StopIteration:
            actor.is_over = True
            self._remove(actor)
            what = None
        self._after(actor, what, share)

    def run(self, *, until_ns: int | None = None, max_steps: int | None = None) -> Ending:
        """Go on until ``stop`` is called, or one of the limits is reached, or nothing can go on."""
        choose = self.chooser.choose
        fifo, normal, idle = self._ready
        timers = self._timers
        cpus, step_ns = self.cpus, self._step_ns
        last_ns = (1 << 62) if until_ns is None else until_ns
        last_step = (1 << 62) if max_steps is None else self.steps + max_steps
        self._is_done = False
        while True:
            if timers and timers[0][0] <= self.now_ns:
                self._fire()
            if self._is_done:
                return Ending.DONE
            if self.now_ns >= last_ns:
                return Ending.TIME
            if self.steps >= last_step:
                return Ending.STEPS
            share = count = len(normal)
            if fifo or idle:
                share += len(fifo) + len(idle)
                band = self._choose_band()
                count = len(band)
            else:
                band = normal
            if count == 0:
                if not timers:
                    return self._judge_silence()
                self.now_ns = min(last_ns, max(self.now_ns, timers[0][0]))
                continue
            share = min(share, cpus)
            actor = band[0] if count == 1 else band[choose(count)]
            self.current = actor
            self.steps += 1
            try:
                what = actor.resume()
            except StopIteration:
                actor.is_over = True
                self._remove(actor)
                self._after(actor, None, share)
                continue
            if (what is None or type(what) is int) and self.trace is None and not self.every_step:
                cost_ns = step_ns if what is None else what
                self.now_ns += cost_ns // share
            else:
                self._after(actor, what, share)

    # -- inside --------------------------------------------------------------------------------------------

    def _after(self, actor: Actor, what: object, share: int) -> None:
        """One step is over: its cost, shared by the CPUs that were at work, and how its actor goes on."""
        cost_ns = self._step_ns
        if what is None:
            pass
        elif type(what) is int:
            cost_ns = what
        elif isinstance(what, Wait):
            actor.was_timed_out = False
            actor.was_interrupted = actor.is_doomed and what.is_killable
            if not actor.was_interrupted:
                self._remove(actor)
                actor.waits_for = what
                what.park(self, actor)
        else:
            message = f"{actor.name} yielded {what!r}"
            raise TypeError(message)
        if self.trace is not None:
            text = f"waits: {what.describe()}" if isinstance(what, Wait) else "goes on"
            self.note("ends" if actor.is_over else text)
        self.now_ns += cost_ns // share
        for check in self.every_step:
            check()

    def _judge_silence(self) -> Ending:
        """Nobody is runnable, and nothing is to come."""
        is_quiet = all(actor.is_over or isinstance(actor.waits_for, Rest) for actor in self.actors)
        return Ending.QUIET if is_quiet else Ending.STUCK

    def _choose_band(self) -> list[Actor]:
        """Whose CPU is next: the FIFO actors' (one CPU each), or that of the rest."""
        fifo, normal, idle = self._ready
        rest = normal or idle
        if not fifo:
            return rest
        if not rest or len(fifo) >= self.cpus:
            return fifo
        return fifo if self.chooser.choose(self.cpus) < len(fifo) else rest

    def _fire(self) -> None:
        """The timers that are due."""
        timers, now_ns = self._timers, self.now_ns
        while timers and timers[0][0] <= now_ns:
            _, serial, due = heapq.heappop(timers)
            if not isinstance(due, Actor):
                self.current = None
                due()
            elif due.timer == serial and due.waits_for is not None:
                due.waits_for.withdraw(due)
                due.was_timed_out = True
                self.wake(due)

    def _add(self, actor: Actor) -> None:
        band = self._ready[actor.band]
        actor.position = len(band)
        band.append(actor)

    def _remove(self, actor: Actor) -> None:
        band = self._ready[actor.band]
        last = band.pop()
        if last is not actor:
            band[actor.position] = last
            last.position = actor.position
        actor.position = -1
