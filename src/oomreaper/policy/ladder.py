"""Which step is due: each rule's state in each scope, as a table. Pure.

Rules:

1. A rule fires when all of its conditions have held in every sample for ``for_ns``; a single sample in between that
   says otherwise starts the time anew. What lies between two samples is not known, and counts as they do.
2. It stays active until it has recovered: a condition of ``when`` no longer holds, *and* all of ``recovered`` hold
   that are told here. So with no ``recovered`` it acts on numbers that meet ``when`` now, and with one it goes on
   taking victims until that level is reached, as the user asked by writing it.
3. A step is due ``after_ns`` after the step before it was taken (the first: after the rule fired), or at once when its
   ``or_when`` holds. That is asked of every step ahead, from the top down: memory that is nearly gone does not wait for
   the steps between, which are left out.
4. Of all steps that are due in a scope the strongest goes first; of equals, the one whose rule comes first.
5. When a victim has settled, the ladder goes back to before its first step that takes a victim (``rewind``), and
   *nothing* is due before a sample newer than that has been seen. Stalls from before it are forgotten too: they were
   that victim's, and a pressure over 10 s would otherwise take a second one for 10 s on end.
6. A move that the table does not have is refused and changes nothing.

A rule's state in a scope: IDLE, its conditions do not all hold; HOLDING, they do, but not for long enough; ACTIVE, it
has fired; RESTING, it has fired and nothing more is to be done until it recovers (a dry run has said its piece). While
any rule of a scope rests, another that fires there rests at once.

``scope`` of a rule is MACHINE, or a glob over the paths of control groups, in which ``*`` stands for anything, slashes
too. States are made when a scope's first sample comes; whoever drives this must ``forget`` a group that has gone.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.decision import DueStep, RuleReading
from oomreaper.model.plan import MACHINE, StepKind
from oomreaper.policy.conditions import describe, is_met, measure, read_condition
from oomreaper.policy.history import ScopeHistory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oomreaper.model.plan import Condition, Rule
    from oomreaper.model.sample import ScopeSample

# A victim has settled, and its scope has not been looked at since: that look is wanted at once, but not in a busy loop.
_LOOK_AGAIN_NS = 1_000_000


class State(enum.Enum):
    """Where a rule stands in a scope."""

    IDLE = "idle"
    HOLDING = "holding"
    ACTIVE = "active"
    RESTING = "resting"


class Move(enum.Enum):
    """What can happen to it."""

    MEET = "meet"  # all conditions hold
    LAPSE = "lapse"  # one no longer does, before it fired
    FIRE = "fire"  # they have held long enough
    REST = "rest"
    RECOVER = "recover"


TRANSITIONS: Mapping[tuple[State, Move], State] = MappingProxyType(
    {
        (State.IDLE, Move.MEET): State.HOLDING,
        (State.HOLDING, Move.LAPSE): State.IDLE,
        (State.HOLDING, Move.FIRE): State.ACTIVE,
        (State.ACTIVE, Move.REST): State.RESTING,
        (State.ACTIVE, Move.RECOVER): State.IDLE,
        (State.RESTING, Move.RECOVER): State.IDLE,
    }
)

_IDLE: Final = State.IDLE  # asked of each rule at each look, where looking it up in its enum would be half the cost
_ACTIVE: Final = State.ACTIVE
_STRENGTH = MappingProxyType({StepKind.WARN: 0, StepKind.RECLAIM: 1, StepKind.TERMINATE: 2, StepKind.KILL: 3})
_TAKES_VICTIM = frozenset({StepKind.TERMINATE, StepKind.KILL})


class Ladder:
    """All rules, in all scopes."""

    __slots__ = ("_patterns", "_rules", "_scopes")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._patterns = {
            rule.scope: re.compile(fnmatch.translate(rule.scope)) for rule in rules if rule.scope != MACHINE
        }
        self._scopes: dict[str, _Scope] = {}

    def on_sample(self, sample: ScopeSample) -> None:
        """Take a scope's numbers in. A sample that is not newer than its last one changes nothing."""
        scope = self._scopes.get(sample.scope)
        if scope is None:
            scope = self._scopes[sample.scope] = _Scope(sample.scope, self._find_rules(sample.scope))
        scope.on_sample(sample)

    def due(self, scope: str, now_ns: int) -> DueStep | None:
        """The strongest step that is due in a scope; None: nothing is. Asking changes nothing."""
        state = self._scopes.get(scope)
        return None if state is None else state.due(now_ns)

    def note_taken(self, due: DueStep, now_ns: int) -> bool:
        """A step was taken, at ``now_ns``. False, and nothing changed: its rule is no longer at or below that step."""
        state = self._scopes.get(due.scope)
        return state is not None and state.note_taken(due, now_ns)

    def rewind(self, scope: str, now_ns: int, *, is_memory_back: bool = True) -> None:
        """A victim has settled: the next one may be taken, if newer numbers say so.

        Args:
            scope: Where.
            now_ns: When; only a sample from then or later counts as newer.
            is_memory_back: What it had caused is forgotten. False for a victim that kept all it had.
        """
        state = self._scopes.get(scope)
        if state is not None:
            state.rewind(now_ns, is_memory_back=is_memory_back)

    def rest(self, scope: str) -> None:
        """Nothing more is to be done in this scope until its active rules have recovered."""
        state = self._scopes.get(scope)
        if state is not None:
            state.rest()

    def forget(self, scope: str) -> None:
        """That group is gone."""
        self._scopes.pop(scope, None)

    def is_active(self, scope: str) -> bool:
        """Whether a rule has fired there and not yet recovered; one that rests counts."""
        state = self._scopes.get(scope)
        return state is not None and any(climb.has_fired for climb in state.climbs)

    def is_critical(self, scope: str, condition: Condition) -> bool | None:
        """Whether ``condition`` holds there now; None when it is not told there, or nothing was sampled yet."""
        state = self._scopes.get(scope)
        if state is None or measure(condition, state.history) is None:
            return None
        return is_met(condition, state.history)

    def history(self, scope: str) -> ScopeHistory:
        """What is known of a scope; an empty history for one that was never sampled."""
        state = self._scopes.get(scope)
        return ScopeHistory() if state is None else state.history

    def rules_of(self, scope: str) -> tuple[Rule, ...]:
        """The rules that look at a scope."""
        state = self._scopes.get(scope)
        return self._find_rules(scope) if state is None else state.rules

    def readings(self) -> tuple[RuleReading, ...]:
        """How each rule stands in each scope that was sampled."""
        return tuple(climb.read(state) for state in self._scopes.values() for climb in state.climbs)

    def next_due_ns(self, now_ns: int, scope: str | None = None) -> int | None:
        """When time alone will make a rule fire or a step due, in one scope (None: in any); None: never.

        What is due at ``now_ns`` already is ``due``'s to tell, and not counted. A rule fires on a sample only, so a new
        one must be taken then; and soon, in a scope in which a victim has settled.
        """
        states = self._scopes.values() if scope is None else [self._scopes[scope]] if scope in self._scopes else []
        return min((at_ns for state in states for at_ns in state.moments(now_ns) if at_ns > now_ns), default=None)

    def _find_rules(self, scope: str) -> tuple[Rule, ...]:
        if scope == MACHINE:
            return tuple(rule for rule in self._rules if rule.scope == MACHINE)
        return tuple(rule for rule in self._rules if rule.scope != MACHINE and self._patterns[rule.scope].match(scope))


class _Scope:
    """One scope: its history, and how each of its rules stands."""

    __slots__ = ("_is_resting", "_wants_sample_from_ns", "climbs", "history", "name", "rules")

    def __init__(self, name: str, rules: tuple[Rule, ...]) -> None:
        self.name = name
        self.rules = rules
        self.history = ScopeHistory()
        self.climbs = tuple(_Climb(rule) for rule in rules)
        self._wants_sample_from_ns: int | None = None
        self._is_resting = False

    def on_sample(self, sample: ScopeSample) -> None:
        if not self.history.add(sample):
            return
        now_ns = sample.monotonic_ns
        if self._wants_sample_from_ns is not None and now_ns >= self._wants_sample_from_ns:
            self._wants_sample_from_ns = None
        for climb in self.climbs:
            climb.on_sample(self.history, now_ns)
        if self._is_resting:
            self._is_resting = any(climb.state is State.RESTING for climb in self.climbs)
            if self._is_resting:
                self.rest()

    def due(self, now_ns: int) -> DueStep | None:
        if self._wants_sample_from_ns is not None:
            return None
        best: _Climb | None = None
        best_position = best_strength = -1
        for climb in self.climbs:
            if climb.state is not _ACTIVE:
                continue
            position = climb.due_position(self.history, now_ns)
            if position is None:
                continue
            strength = _STRENGTH[climb.rule.then[position].kind]
            if strength > best_strength:
                best, best_position, best_strength = climb, position, strength
        if best is None:
            return None
        reason = best.explain(self.history, best_position, now_ns)
        return DueStep(best.rule, self.name, best.rule.then[best_position], best_position, reason)

    def note_taken(self, due: DueStep, now_ns: int) -> bool:
        return any(climb.rule == due.rule and climb.note_taken(due.position, now_ns) for climb in self.climbs)

    def rewind(self, now_ns: int, *, is_memory_back: bool) -> None:
        for climb in self.climbs:
            climb.rewind()
        if is_memory_back:
            self.history.restart()
        self._wants_sample_from_ns = now_ns

    def rest(self) -> None:
        for climb in self.climbs:
            if climb.state is State.ACTIVE:
                climb.apply(Move.REST)
                self._is_resting = True

    def moments(self, now_ns: int) -> list[int]:
        if self._wants_sample_from_ns is not None:
            return [now_ns + _LOOK_AGAIN_NS]
        return [moment for climb in self.climbs if (moment := climb.next_moment_ns()) is not None]


class _Climb:
    """One rule in one scope. ``position`` is the next step; ``_since_ns`` the moment its ``after_ns`` counts from."""

    __slots__ = (
        "_before_victim_ns",
        "_first_victim",
        "_held_since_ns",
        "_last_ns",
        "_since_ns",
        "position",
        "rule",
        "state",
    )

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.state = State.IDLE
        self.position = 0
        kinds = [step.kind in _TAKES_VICTIM for step in rule.then]
        self._first_victim = kinds.index(True) if True in kinds else len(kinds)
        self._held_since_ns: int | None = None
        self._last_ns = 0
        self._since_ns = 0
        self._before_victim_ns = 0

    @property
    def has_fired(self) -> bool:
        """Whether it is active or at rest."""
        return self.state is State.ACTIVE or self.state is State.RESTING

    def apply(self, move: Move) -> None:
        target = TRANSITIONS.get((self.state, move))
        if target is None:
            raise BrokenPromiseError(f"a rule that is {self.state.value} cannot {move.value}")
        self.state = target

    def on_sample(self, history: ScopeHistory, now_ns: int) -> None:
        self._last_ns = now_ns
        does_hold = self._does_hold(history)
        if not does_hold and self.state is _IDLE:
            return
        if not does_hold:
            self._held_since_ns = None
        elif self._held_since_ns is None:
            self._held_since_ns = now_ns
        if self.state is State.IDLE and does_hold:
            self.apply(Move.MEET)
        if self.state is State.HOLDING:
            if self._held_since_ns is None:
                self.apply(Move.LAPSE)
            elif now_ns - self._held_since_ns >= self.rule.for_ns:
                self.apply(Move.FIRE)
                self.position = 0
                self._since_ns = self._before_victim_ns = now_ns
        elif self.has_fired and not does_hold and self._has_recovered(history):
            self.apply(Move.RECOVER)
            self.position = 0

    def due_position(self, history: ScopeHistory, now_ns: int) -> int | None:
        """Which step is due now; only of a rule that is active."""
        then = self.rule.then
        for position in range(len(then) - 1, self.position - 1, -1):
            or_when = then[position].or_when
            if or_when is not None and is_met(or_when, history):
                return position
        if self.position < len(then) and now_ns - self._since_ns >= then[self.position].after_ns:
            return self.position
        return None

    def note_taken(self, position: int, now_ns: int) -> bool:
        if not self.has_fired or not self.position <= position < len(self.rule.then):
            return False
        if self.position < self._first_victim <= position + 1:
            # The moment from which the first step that takes a victim counts: a rewind goes back to it.
            self._before_victim_ns = now_ns
        self.position = position + 1
        self._since_ns = now_ns
        return True

    def rewind(self) -> None:
        if self.state is State.ACTIVE and self.position > self._first_victim:
            self.position = self._first_victim
            self._since_ns = self._before_victim_ns

    def next_moment_ns(self) -> int | None:
        if self.state is State.HOLDING and self._held_since_ns is not None:
            return self._held_since_ns + self.rule.for_ns
        if self.state is State.ACTIVE and self.position < len(self.rule.then):
            return self._since_ns + self.rule.then[self.position].after_ns
        return None

    def read(self, scope: _Scope) -> RuleReading:
        return RuleReading(
            self.rule,
            scope.name,
            tuple(read_condition(condition, scope.history) for condition in self.rule.when),
            held_ns=None if self._held_since_ns is None else self._last_ns - self._held_since_ns,
            is_active=self.has_fired,
            steps_taken=self.position,
        )

    def explain(self, history: ScopeHistory, position: int, now_ns: int) -> str:
        """Why that step is due, in words."""
        if self._does_hold(history):
            reason = _describe_all(self.rule.when, history)
        else:
            reason = f"not yet recovered: {_describe_all(self.rule.recovered, history)}"
        step = self.rule.then[position]
        is_time = position == self.position and now_ns - self._since_ns >= step.after_ns
        if step.or_when is not None and not is_time:
            reason += f"; not to be waited for, since {_describe_all((step.or_when,), history)}"
        return reason

    def _does_hold(self, history: ScopeHistory) -> bool:
        when = self.rule.when
        if not when:  # a rule that asks for nothing is a broken plan, and no reason to kill
            return False
        for condition in when:  # noqa: SIM110 - a plain loop: all() over a generator costs twice as much, at each look
            if not is_met(condition, history):
                return False
        return True

    def _has_recovered(self, history: ScopeHistory) -> bool:
        """Whether all of ``recovered`` hold that are told here: what is not told keeps no rule active for ever."""
        return all(is_met(each, history) or measure(each, history) is None for each in self.rule.recovered)


def _describe_all(conditions: tuple[Condition, ...], history: ScopeHistory) -> str:
    return "; ".join(describe(condition, measure(condition, history)) for condition in conditions)
