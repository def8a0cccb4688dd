"""What is allowed in a settings file and yet hardly meant: warnings, each with where it is and what to do.

Looks at the finished plan, so it warns of what would be in force. A warning never keeps a plan from being used.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.config.values import show_text
from oomreaper.model.plan import MACHINE, MatchField, Metric, StepKind, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oomreaper.model.plan import Condition, Matcher, MatchTest, Plan, Rule

_COMM_BYTES = 15  # TASK_COMM_LEN of linux/sched.h without its NUL
# Texts that have nothing in common: a pattern that matches all of them matches everything.
_UNLIKE_TEXTS = ("a", "Zz-9 \x01", "/usr/bin/x", "0" * 64, "\u00fc")
_WHOLE_PERCENT = 100


class Advice(NamedTuple):
    """One warning: ``key`` is the path to what it is about, ``line`` its line or None; str() has it all."""

    file: str
    key: str
    line: int | None
    text: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.key, f"warning: {self.text}") if part)


_Place = tuple[str | int, ...]


def find_advice(
    plan: Plan, *, others_may_write: str = "", is_executable: Callable[[str], bool] | None = None
) -> Iterator[tuple[_Place, str]]:
    """Everything about a plan that is hardly meant, as key path and text.

    Args:
        plan: The plan.
        others_may_write: Who could change the file, in words.
        is_executable: Tells whether a program can be run; by asking the file system, by default.
    """
    yield from _advise_rules(plan)
    yield from _advise_victims(plan)
    executable = _is_executable if is_executable is None else is_executable
    for key, command in (("pre_kill", plan.hooks.pre_kill), ("post_kill", plan.hooks.post_kill)):
        if command and not executable(command[0]):
            yield ("hooks", key, 0), f"{show_text(command[0])} is not there, or cannot be run by us; the hook will fail"
    if others_may_write and (plan.hooks.pre_kill or plan.hooks.post_kill):
        yield (
            ("hooks",),
            f"{others_may_write}, and so chooses programs that oomreaper runs; chown it to its user, and chmod go-w",
        )
    if plan.attempts * plan.attempt_ns > plan.timeout_ns:
        yield ("kill", "timeout"), "it ends before the last attempt; the victim is given up earlier than attempts says"


def _is_executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


# -- rules -------------------------------------------------------------------------------------------------


def _advise_rules(plan: Plan) -> Iterator[tuple[_Place, str]]:
    for number, rule in enumerate(plan.rules):
        here: _Place = ("rule", number)
        for position, condition in enumerate(rule.when):
            why = _tell_never(condition, rule, plan)
            if why:
                yield (*here, "when", position), f'the rule can never fire: "{show_text(condition.text)}" {why}'
            if _is_always(condition):
                yield (*here, "when", position), f'"{show_text(condition.text)}" always holds; leave it out'
        for position, recovered in enumerate(rule.recovered):
            if any(_can_both_hold(recovered, condition) for condition in rule.when):
                yield (
                    (*here, "recovered", position),
                    "it holds while the shortage lasts; choose a level on the good side of the one in 'when'",
                )
        yield from _advise_ladder(rule, here)
    if not any(step.kind in (StepKind.KILL, StepKind.TERMINATE) for rule in plan.rules for step in rule.then):
        yield ("rule",), "no rule ever kills; oomreaper will only tell of a shortage"


def _advise_ladder(rule: Rule, here: _Place) -> Iterator[tuple[_Place, str]]:
    kinds = [step.kind for step in rule.then]
    if StepKind.KILL in kinds:
        first = kinds.index(StepKind.KILL)
        for position in range(first + 1, len(kinds)):
            if kinds[position] is StepKind.TERMINATE:
                yield (*here, "then", position), "it comes after a kill, when there is nobody left to ask"
    elif StepKind.TERMINATE in kinds:
        yield (
            (*here, "then"),
            'who does not answer to SIGTERM is never killed, and nobody else is; add "kill after 10s"',
        )


def _tell_never(condition: Condition, rule: Rule, plan: Plan) -> str:
    """Why a condition can never hold; empty when it can."""
    if condition.metric is Metric.MEMORY_CURRENT and rule.scope == MACHINE and plan.within is None:
        return "is told of control groups only; give the rule a scope"
    if condition.unit is Unit.PERCENT and not condition.is_below and condition.threshold > _WHOLE_PERCENT:
        return "is beyond 100 %"
    if condition.metric is Metric.TIME_TO_EXHAUSTION and condition.threshold <= 0:
        return "has no time left to hold in"
    return ""


def _is_always(condition: Condition) -> bool:
    is_level = condition.unit is Unit.PERCENT and condition.is_below
    return is_level and condition.threshold >= _WHOLE_PERCENT


def _can_both_hold(recovered: Condition, condition: Condition) -> bool:
    """Whether a recovered level lies inside what the condition calls a shortage."""
    if recovered.metric is not condition.metric or recovered.unit is not condition.unit:
        return False
    if recovered.is_below is condition.is_below or recovered.window_ns != condition.window_ns:
        return False
    return (
        recovered.threshold < condition.threshold if condition.is_below else recovered.threshold > condition.threshold
    )


# -- matchers ----------------------------------------------------------------------------------------------


def _advise_victims(plan: Plan) -> Iterator[tuple[_Place, str]]:
    lists = {"never": plan.victims.never, "avoid": plan.victims.avoid, "prefer": plan.victims.prefer}
    for key, matchers in lists.items():
        for position, matcher in enumerate(matchers):
            here: _Place = ("victims", key, position)
            if all(_matches_everything(test) for test in matcher.tests):
                effect = "nobody can ever be killed" if key == "never" else "it says nothing"
                yield here, f"it matches every process, so {effect}"
            for test in matcher.tests:
                if test.field is MatchField.COMM and _shortest_bytes(test) > _COMM_BYTES:
                    yield (
                        here,
                        (
                            f'"{show_text(test.text)}" never matches: the kernel keeps {_COMM_BYTES} bytes of a name; '
                            "cut it there, or match exe or cmdline"
                        ),
                    )
            for stronger in ("never", "avoid"):
                if stronger == key:
                    break
                if _tests_of(matcher) in [_tests_of(other) for other in lists[stronger]]:
                    yield here, f"it is in {stronger} too, which wins"


def _tests_of(matcher: Matcher) -> frozenset[tuple[MatchField, str]]:
    return frozenset((test.field, test.regex) for test in matcher.tests)


def _matches_everything(test: MatchTest) -> bool:
    if test.field is MatchField.USER:
        return False
    pattern = re.compile(test.regex)
    return all(pattern.search(text) for text in _UNLIKE_TEXTS)


def _shortest_bytes(test: MatchTest) -> int:
    """How long a name must be at least to match; 0 where that cannot be told easily."""
    written = test.text.partition(" = ")[2]
    if test.text.startswith(f"{test.field.value}_regex"):
        bare = written.removeprefix("^").removesuffix("$")
        return len(bare.encode()) if re.fullmatch(r"[\w /:-]*", bare) else 0
    return len(re.sub(r"\[!?\]?[^\]]*\]", "?", written).replace("*", "").encode())
