"""When to look at a scope again: the nearer to a threshold, the sooner. Pure.

It knows how fast each number *can* move, and from that the earliest moment at which a rule could come to hold; no
look is later than that, so there is no blind second. It refuses to know which step of a ladder is due
when (``Ladder.next_due_ns`` does), and what else may wake the watcher: triggers come on top.

How it works. For each condition, how soon it could hold at the soonest:

* a level of memory: what lies between it and now, at what the machine can do, or at twice the fastest fall that was
  seen, whichever is more;
* a share of stalled time: it can rise by no more than the time that passes, so 20 % over 10 s is 2 s away from 0 %;
* a forecast: when it would hold if memory fell twice as fast as it does, but no sooner than its own slices can move.

A rule holds when *all* its conditions do, so the one that is farthest decides; the scope's next look is that of its
nearest rule. A condition that is not told here never holds, nor does its rule. A rule that holds already is looked at
for the levels further up its ladder, and for its recovery, as a near one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, assert_never

from oomreaper.model.plan import MACHINE, Unit
from oomreaper.policy.conditions import (
    BYTES,
    MEM_AVAILABLE,
    MEMORY_CURRENT,
    PSI_MEMORY_FULL,
    PSI_MEMORY_SOME,
    SWAP_FREE,
    TIME_TO_EXHAUSTION,
    ZRAM_USED,
    distance_of,
    measure,
)

if TYPE_CHECKING:
    from oomreaper.model.plan import Condition, Rule
    from oomreaper.model.sample import ScopeSample
    from oomreaper.policy.history import ScopeHistory

_MS = 1_000_000
_SECOND = 1_000_000_000
_PER_CENT = 100.0

# A look costs about 50 us; every millisecond that is a twentieth of a core, for as long as the last stretch takes.
SOONEST_NS = 1 * _MS
# Two idle wake-ups a second is the budget, and this is one of them.
LATEST_NS = 1 * _SECOND
# People notice a tenth of a second. Ten looks a second cost half a thousandth of a core, so a machine may stay near.
NEAR_NS = 100 * _MS
# Two cores that fill huge pages take about 6 GiB a second; what more cores do shows as an observed fall, within 16 ms.
MACHINE_FILL_BYTES_PER_SECOND = 6 << 30
# A group's own events (its pressure, its limit hit) wake the watcher besides, and there may be hundreds of groups: one
# is expected to fill half of its limit in a second, until it has shown to be faster.
GROUP_FILL_SHARE = 0.5
# How much faster than it was seen to fall memory may fall next.
_SURPRISE = 2.0
# Near is twice the threshold, or this time away at the present fall: enough for a sweep of 10,000 processes.
_NEAR_FACTOR = 2.0
_NEAR_SECONDS = 2.0
# A forecast rests on half seconds; within a tenth of one it does not change by much.
_FORECAST_GRAIN_SECONDS = 0.1


class _Prospect(NamedTuple):
    """How soon a condition, or a whole rule, could hold at the soonest; and whether it is near."""

    seconds: float
    is_near: bool


_FAR = _Prospect(math.inf, is_near=False)
_NOW = _Prospect(0.0, is_near=True)
_LATEST_SECONDS = LATEST_NS / _SECOND
_NEAR_CAP_SECONDS = NEAR_NS / _SECOND


class Outlook(NamedTuple):
    """When a scope must be looked at next, at the latest, and whether it is near a threshold."""

    next_look_ns: int
    is_near: bool


def foresee(history: ScopeHistory, rules_for_scope: tuple[Rule, ...], now_ns: int) -> Outlook:
    """Both at once, for the price of one: the next look is ``now_ns`` and 1 ms to 1 s."""
    sample = history.latest
    soonest = _LATEST_SECONDS
    is_any_near = False
    if sample is not None:
        for rule in rules_for_scope:
            prospect = _foresee_rule(rule, history, sample)
            if prospect is _FAR:
                continue
            seconds = prospect.seconds
            if prospect is _NOW:
                # It holds; what can come next is a step further up that waits for a level of its own.
                ahead = [_foresee(step.or_when, history, sample) for step in rule.then if step.or_when is not None]
                seconds = min((each.seconds for each in ahead if each is not _NOW), default=math.inf)
            if prospect.is_near:
                is_any_near = True
                seconds = min(seconds, _NEAR_CAP_SECONDS)
            soonest = min(soonest, seconds)
    return Outlook(now_ns + max(SOONEST_NS, int(soonest * _SECOND)), is_any_near)


def next_look_ns(history: ScopeHistory, rules_for_scope: tuple[Rule, ...], now_ns: int) -> int:
    """When the scope must be looked at next, at the latest."""
    return foresee(history, rules_for_scope, now_ns).next_look_ns


def is_near(history: ScopeHistory, rules: tuple[Rule, ...]) -> bool:
    """Whether a rule is near enough to holding that candidates are worth a look ahead of need.

    Each of its conditions must be near: at twice the threshold or below (a share of stalled time: half of it or above),
    or 2 s from it at the fastest fall of late.
    """
    return foresee(history, rules, 0).is_near


def _foresee_rule(rule: Rule, history: ScopeHistory, sample: ScopeSample) -> _Prospect:
    """The farthest of its conditions; _FAR as soon as one is so far that the rule makes no difference."""
    seconds = 0.0
    is_every_near = holds = bool(rule.when)
    for condition in rule.when:
        prospect = _foresee(condition, history, sample)
        if prospect is _NOW:
            continue
        holds = False
        if not prospect.is_near:
            if prospect.seconds >= _LATEST_SECONDS:
                return _FAR
            is_every_near = False
        seconds = max(seconds, prospect.seconds)
    if holds:
        return _NOW
    return _Prospect(seconds, is_every_near) if rule.when else _FAR


def _foresee(condition: Condition, history: ScopeHistory, sample: ScopeSample) -> _Prospect:
    measured = measure(condition, history)
    if measured is None:
        return _FAR
    distance = distance_of(condition, measured)
    if distance <= 0:
        return _NOW
    threshold = condition.threshold
    fastest = history.fastest_fall_bytes_per_second()
    metric = condition.metric
    if metric is MEM_AVAILABLE or metric is SWAP_FREE:
        whole = sample.total_bytes if metric is MEM_AVAILABLE else sample.swap_total_bytes
        near = measured <= _NEAR_FACTOR * threshold
    elif metric is PSI_MEMORY_SOME or metric is PSI_MEMORY_FULL:
        seconds = distance / _PER_CENT * (condition.window_ns or 0) / _SECOND
        return _Prospect(seconds, measured >= threshold / _NEAR_FACTOR)
    elif metric is TIME_TO_EXHAUSTION:
        room = sample.available_bytes + sample.swap_free_bytes
        seconds = room / (_SURPRISE * fastest) - threshold if fastest > 0 else math.inf
        near = measured <= max(_NEAR_FACTOR * threshold, threshold + _NEAR_SECONDS)
        return _Prospect(max(seconds, _FORECAST_GRAIN_SECONDS), near)
    elif metric is MEMORY_CURRENT:
        whole = sample.limit_bytes or 0
        # Seen from the limit, as the levels above are seen from 0: the room that is left now, and at the threshold.
        top = _PER_CENT if condition.unit is Unit.PERCENT else float(whole)
        near = top - measured <= _NEAR_FACTOR * (top - threshold)
    elif metric is ZRAM_USED:
        whole = sample.total_bytes
        near = measured >= threshold / _NEAR_FACTOR
    else:
        assert_never(metric)
    distance_bytes = distance if condition.unit is BYTES else distance / _PER_CENT * whole
    fill = MACHINE_FILL_BYTES_PER_SECOND if sample.scope == MACHINE else GROUP_FILL_SHARE * sample.total_bytes
    fill = max(fill, _SURPRISE * fastest, 1.0)
    return _Prospect(distance_bytes / fill, near or distance_bytes < _NEAR_SECONDS * fastest)
