"""Every schedule of a few actors that matters: a search through all interleavings, with partial-order reduction. Pure.

What it knows: which shared variables each atomic step read and wrote. What it refuses to know: what the actors are
about. ``protocols`` has the models; a model breaks its own invariants by raising ``Violation``.

How it works:

1. An actor is a generator; what it does between two yields is one atomic step. It yields ``None``, or
   ``Until(condition)``: it cannot go on before that is so. A generator cannot be copied: a schedule is replayed.
2. Two steps are dependent when they touch the same variable and one of them writes it. Two schedules that differ only
   in the order of independent steps come to the same; one of them is enough (Mazurkiewicz traces).
3. Dynamic partial-order reduction (Flanagan and Godefroid, 2005): whenever a step turns out to depend on an earlier
   one of another actor that it is not ordered after anyway, the other order is tried, too, from where that step began.
   If the actor could not run there, all that could are tried.
4. Sleep sets (Godefroid): a step that was tried at some point is not tried again behind independent steps only.
5. ``is_reduced=False`` is the plain search, breadth first over states that have not been seen: the measure that the
   reduction is tested against (same ends), and the way to the shortest schedule that breaks something.

A state is what the shared variables hold, and where each actor stands: the line and the local values of its generator
and of those that it runs. Locals are values (numbers, words, tuples, enums), or objects that say their ``name``; of
any other object only its type counts, since it belongs to the world and is in its key.
"""

from __future__ import annotations

import enum
import importlib
import sys
import time
import types
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from oomreaper.sim.checks import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Sequence

    Steps = Generator[Any, None, Any]

_NO_ACCESS: frozenset[str] = frozenset()
_VALUES = (bool, int, str, tuple, frozenset, enum.Enum)
# More than the largest model in the table has; a model that runs beyond it has an actor that never ends.
_LONGEST_SCHEDULE = 2_000


class Until:
    """What an actor yields that cannot go on before ``condition()``, which reads shared variables and writes none."""

    __slots__ = ("condition",)

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.condition = condition


class Access(NamedTuple):
    """What one step touched."""

    reads: frozenset[str]
    writes: frozenset[str]

    def conflicts(self, other: Access) -> bool:
        """Whether the order of the two matters."""
        return bool(self.writes & other.writes or self.writes & other.reads or self.reads & other.writes)


class Ledger:
    """Notes what the running step touches."""

    def __init__(self) -> None:
        self._reads: set[str] = set()
        self._writes: set[str] = set()

    def note(self, name: str, *, is_write: bool = False) -> None:
        """The step touches ``name``."""
        (self._writes if is_write else self._reads).add(name)

    def take(self) -> Access:
        """What was touched since the last call."""
        access = Access(frozenset(self._reads), frozenset(self._writes))
        self._reads.clear()
        self._writes.clear()
        return access


class Cell:
    """One shared variable; its value is hashable."""

    __slots__ = ("_ledger", "name", "value")

    def __init__(self, ledger: Ledger, name: str, value: Any) -> None:
        self._ledger = ledger
        self.name = name
        self.value = value  # for keys and checks at the end: not noted

    def get(self) -> Any:
        """Read it."""
        self._ledger.note(self.name)
        return self.value

    def set(self, value: Any) -> None:
        """Write it."""
        self._ledger.note(self.name, is_write=True)
        self.value = value

    def add(self, number: int) -> int:
        """Atomically: read, add, write; the new value."""
        self._ledger.note(self.name, is_write=True)
        self.value += number
        return int(self.value)


class World(Protocol):
    """One fresh start of a model."""

    actors: dict[str, Steps]
    daemons: frozenset[str]  # may wait for ever

    def key(self) -> Hashable:
        """What the shared variables hold."""

    def check_end(self) -> None:
        """Nobody can go on. Raises ``Violation`` when that is not as it must be."""


class Model(Protocol):
    """Makes worlds that are all the same."""

    name: str

    def build(self, ledger: Ledger) -> World:
        """A fresh one."""


class Breach(NamedTuple):
    """What was found: the invariant, in words, and the schedule (actors by name, a step each) that replays it."""

    invariant: str
    text: str
    schedule: tuple[str, ...]


class Report(NamedTuple):
    """How much was looked at: distinct ``states``, complete ``schedules``; ``pruned`` ones were left as redundant.

    ``steps`` counts replayed ones, too. ``ends`` are the states in which nobody could go on. ``breach`` None: all
    invariants hold in every schedule.
    """

    model: str
    states: int
    schedules: int
    pruned: int
    steps: int
    longest: int
    ends: frozenset[Hashable]
    breach: Breach | None
    is_complete: bool
    seconds: float

    def __str__(self) -> str:
        found = "nothing found" if self.breach is None else f"{self.breach.invariant}: {self.breach.text}"
        size = f"{self.states} states, {self.schedules} schedules ({self.pruned} pruned), {len(self.ends)} ends"
        return f"{self.model}: {size}, {self.steps} steps in {self.seconds:.1f} s; {found}"


class _Run:
    """One replay."""

    def __init__(self, model: Model) -> None:
        self.ledger = Ledger()
        self.world = model.build(self.ledger)
        self.ledger.take()
        self.live = dict(self.world.actors)
        self.blocked: dict[str, Until] = {}
        self.schedule: list[str] = []

    def enabled(self) -> list[str]:
        """Who can do a step, in the order of the model."""
        ready = [name for name in self.live if name not in self.blocked or self.blocked[name].condition()]
        self.ledger.take()
        return ready

    def pending(self, name: str) -> Access:
        """What one that cannot go on looks at."""
        self.blocked[name].condition()
        return self.ledger.take()

    def step(self, name: str) -> Access:
        """One step."""
        self.schedule.append(name)
        until = self.blocked.pop(name, None)
        if until is not None:
            until.condition()  # its reads are the step's
        try:
            what = next(self.live[name])
        except StopIteration:
            del self.live[name]
            what = None
        if isinstance(what, Until):
            self.blocked[name] = what
        return self.ledger.take()

    def key(self) -> Hashable:
        """The state."""
        places = tuple(_place(self.live[name]) if name in self.live else None for name in self.world.actors)
        return self.world.key(), places

    def check_end(self) -> None:
        """Nobody can go on."""
        waiting = [name for name in self.live if name not in self.world.daemons]
        if waiting:
            raise Violation("stuck", f"{', '.join(waiting)} waits for ever")
        self.world.check_end()


def _place(steps: Any) -> tuple[Hashable, ...]:
    """Where a generator stands, and what it knows."""
    place: list[Hashable] = []
    while steps is not None and steps.gi_frame is not None:
        frame = steps.gi_frame
        place.append((frame.f_code.co_name, frame.f_lasti))
        place.extend(_plain(value) for value in frame.f_locals.values())
        steps = steps.gi_yieldfrom
    return tuple(place)


def _plain(value: Any) -> Hashable:
    if value is None or isinstance(value, _VALUES):
        return value
    if isinstance(value, types.GeneratorType):
        return _place(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else type(value).__name__


class _Node:
    """One point of the schedule that is being extended: what could run there, what has been tried, what was done."""

    __slots__ = ("access", "backtrack", "chosen", "clock", "done", "enabled", "sleep")

    def __init__(self, enabled: list[str], sleep: dict[str, Access]) -> None:
        self.enabled = enabled
        self.sleep = sleep
        self.backtrack: set[str] = set()
        self.done: dict[str, Access] = {}
        self.chosen = ""
        self.access = Access(_NO_ACCESS, _NO_ACCESS)
        self.clock: dict[str, int] = {}  # the last step of each actor that is ordered before this one, itself included

    def next_choice(self) -> str | None:
        """Who is to be tried here next."""
        for name in self.enabled:
            if name in self.backtrack and name not in self.done and name not in self.sleep:
                return name
        return None


def explore(model: Model, *, is_reduced: bool = True, most_schedules: int = 1 << 40) -> Report:
    """All schedules of a model, until an invariant breaks."""
    search = _Reduced(model) if is_reduced else _Plain(model)
    return search.run(most_schedules)


class _Search(ABC):
    def __init__(self, model: Model) -> None:
        self.model = model
        self.states: set[Hashable] = set()
        self.ends: set[Hashable] = set()
        self.schedules = self.pruned = self.steps = self.longest = 0
        self.breach: Breach | None = None
        self.is_complete = False

    def run(self, most_schedules: int) -> Report:
        """Search."""
        start = time.perf_counter()
        try:
            self.is_complete = self.search(most_schedules)
        except _Found as found:
            self.breach = found.breach
        return Report(
            self.model.name,
            len(self.states),
            self.schedules,
            self.pruned,
            self.steps,
            self.longest,
            frozenset(self.ends),
            self.breach,
            self.is_complete,
            time.perf_counter() - start,
        )

    @abstractmethod
    def search(self, most_schedules: int) -> bool:
        """Whether all was searched."""

    def step(self, run: _Run, name: str) -> Access:
        """One step, or the breach that it is."""
        self.steps += 1
        try:
            return run.step(name)
        except Violation as violation:
            raise _Found(Breach(violation.invariant, violation.text, tuple(run.schedule))) from violation

    def end(self, run: _Run) -> None:
        """A schedule is complete."""
        self.schedules += 1
        self.longest = max(self.longest, len(run.schedule))
        self.ends.add(run.world.key())
        try:
            run.check_end()
        except Violation as violation:
            raise _Found(Breach(violation.invariant, violation.text, tuple(run.schedule))) from violation


class _Found(Exception):  # noqa: N818 - the search is over: that is no error
    def __init__(self, breach: Breach) -> None:
        super().__init__(str(breach))
        self.breach = breach


class _Plain(_Search):
    """Breadth first over states."""

    def search(self, most_schedules: int) -> bool:
        pending: deque[tuple[str, ...]] = deque([()])
        while pending:
            schedule = pending.popleft()
            run = _Run(self.model)
            for name in schedule:
                self.step(run, name)
            key = run.key()
            if key in self.states:
                continue
            self.states.add(key)
            ready = run.enabled()
            if not ready:
                self.end(run)
                if self.schedules >= most_schedules:
                    return False
            pending.extend((*schedule, name) for name in ready)
        return True


class _Reduced(_Search):
    """Depth first, with backtracking where races were seen, and sleep sets."""

    def search(self, most_schedules: int) -> bool:
        nodes: list[_Node] = []
        while True:
            self._extend(nodes)
            if self.schedules + self.pruned >= most_schedules:
                return False
            while nodes:
                node = nodes[-1]
                if node.chosen:
                    node.done[node.chosen] = node.access
                    node.chosen = ""
                choice = node.next_choice()
                if choice is not None:
                    node.chosen = choice
                    break
                nodes.pop()
            if not nodes:
                return True

    def _extend(self, nodes: list[_Node]) -> None:
        """Replay what is chosen, and go on to the end of one schedule."""
        run = _Run(self.model)
        last: dict[str, int] = {}
        for depth, node in enumerate(nodes):
            node.access = self.step(run, node.chosen)
            if depth == len(nodes) - 1:
                self._order(nodes, depth, last)  # the others are in order since they were tried first
                self.states.add(run.key())
            last[node.chosen] = depth
        while True:
            sleep = _still_asleep(nodes[-1]) if nodes else {}
            node = _Node(run.enabled(), sleep)
            if not node.enabled:
                for name in run.blocked:
                    self._look_for_races(nodes, len(nodes), name, run.pending(name), last)
                self.end(run)
                return
            choice = next((name for name in node.enabled if name not in sleep), None)
            if choice is None:
                self.pruned += 1
                return
            if len(nodes) > _LONGEST_SCHEDULE:
                message = f"{self.model.name} does not end"
                raise RuntimeError(message)
            node.backtrack.add(choice)
            node.chosen = choice
            nodes.append(node)
            node.access = self.step(run, choice)
            self._order(nodes, len(nodes) - 1, last)
            last[choice] = len(nodes) - 1
            self.states.add(run.key())

    def _order(self, nodes: list[_Node], depth: int, last: dict[str, int]) -> None:
        """Where a step stands in the partial order, and the races that it is part of."""
        node = nodes[depth]
        self._look_for_races(nodes, depth, node.chosen, node.access, last)
        before = last.get(node.chosen)
        clock = dict(nodes[before].clock) if before is not None else {}
        for earlier in nodes[:depth]:
            if earlier.chosen != node.chosen and earlier.access.conflicts(node.access):
                for name, position in earlier.clock.items():
                    if clock.get(name, -1) < position:
                        clock[name] = position
        clock[node.chosen] = depth
        node.clock = clock

    def _look_for_races(
        self, nodes: Sequence[_Node], depth: int, name: str, access: Access, last: dict[str, int]
    ) -> None:
        """Steps of others that this one depends on, and that could have come after it: try that order, too."""
        before = last.get(name)
        clock = nodes[before].clock if before is not None else {}
        for position in range(depth - 1, -1, -1):
            earlier = nodes[position]
            if earlier.chosen == name or not earlier.access.conflicts(access):
                continue
            if clock.get(earlier.chosen, -1) >= position:
                continue
            # Not only the latest such step: one that blocked this actor in between would hide those before it, and ends
            # would be lost that the plain search finds.
            if name in earlier.enabled:
                earlier.backtrack.add(name)
            else:
                earlier.backtrack.update(earlier.enabled)


def _still_asleep(node: _Node) -> dict[str, Access]:
    """Whose next step was tried at ``node`` or before, and does not depend on the step that was chosen there."""
    tried = {**node.sleep, **node.done}
    return {name: access for name, access in tried.items() if name != node.chosen and not access.conflicts(node.access)}


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m oomreaper.sim.explorer [--plain] [MODEL ...]``: explore, and say how much there was."""
    from oomreaper.sim.protocols import MODELS  # it stands on this module

    names = list(sys.argv[1:] if arguments is None else arguments)
    is_reduced = "--plain" not in names
    wanted = [name for name in names if name != "--plain"] or list(MODELS)
    reports = [explore(MODELS[name], is_reduced=is_reduced) for name in wanted]
    sys.stdout.write("\n".join(map(str, reports)) + "\n")
    return 1 if any(report.breach for report in reports) else 0


if __name__ == "__main__":
    # The models know this module by its name: as __main__ it would be there twice.
    sys.exit(importlib.import_module("oomreaper.sim.explorer").main())
