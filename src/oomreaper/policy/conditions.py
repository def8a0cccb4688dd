"""Whether a condition holds, and how far it is from that. Pure.

It knows a scope's history and what each metric means there; how a condition is written is known to ``grammar``, which
is not resident. A metric that this machine or group does not tell is None: such a condition never holds.

* A condition holds at its threshold, and beyond it.
* ``swap_free`` without any swap is 0 %: "swap is nearly full" is true then, so that ``mem_available < 4%`` together
  with ``swap_free < 10%`` works on a machine without swap.
* ``mem_available`` of a group without a limit is not told; nor is ``memory_current`` in per cent.
* ``time_to_exhaustion`` is infinite while memory does not fall, and not told before it was watched for 1.5 s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, assert_never

from oomreaper.model.decision import Reading
from oomreaper.model.plan import Metric, Unit

if TYPE_CHECKING:
    from oomreaper.model.plan import Condition
    from oomreaper.policy.history import ScopeHistory

# Looking a member up in its enum costs as much as all the rest of a comparison, and there are many at each look: the
# members that ``policy`` asks for at each are names of their own.
MEM_AVAILABLE: Final = Metric.MEM_AVAILABLE
SWAP_FREE: Final = Metric.SWAP_FREE
PSI_MEMORY_SOME: Final = Metric.PSI_MEMORY_SOME
PSI_MEMORY_FULL: Final = Metric.PSI_MEMORY_FULL
MEMORY_CURRENT: Final = Metric.MEMORY_CURRENT
TIME_TO_EXHAUSTION: Final = Metric.TIME_TO_EXHAUSTION
ZRAM_USED: Final = Metric.ZRAM_USED
BYTES: Final = Unit.BYTES
_PER_CENT = 100.0
_KIB = 1024


def measure(condition: Condition, history: ScopeHistory) -> float | None:
    """What ``condition`` reads, in its own unit; None when it is not told here (or nothing was sampled yet)."""
    sample = history.latest
    if sample is None:
        return None
    metric = condition.metric
    part: int | None
    if metric is MEM_AVAILABLE:
        # A group without a limit has no total: what is available to it is the machine's, not its own.
        part, whole = (sample.available_bytes if sample.total_bytes > 0 else None), sample.total_bytes
    elif metric is SWAP_FREE:
        part, whole = sample.swap_free_bytes, sample.swap_total_bytes
        if whole <= 0:
            return 0.0
    elif metric is PSI_MEMORY_SOME or metric is PSI_MEMORY_FULL:
        if condition.window_ns is None:
            return None
        return history.psi_share_percent(condition.window_ns, is_full=metric is PSI_MEMORY_FULL)
    elif metric is MEMORY_CURRENT:
        part, whole = sample.current_bytes, sample.limit_bytes or 0
    elif metric is TIME_TO_EXHAUSTION:
        return history.time_to_exhaustion_seconds()
    elif metric is ZRAM_USED:
        part, whole = sample.zram_used_bytes, sample.total_bytes
    else:
        assert_never(metric)
    if part is None:
        return None
    if condition.unit is BYTES:
        return float(part)
    return _PER_CENT * part / whole if whole > 0 else None


def distance_of(condition: Condition, measured: float) -> float:
    """How far ``measured`` is from the threshold, in the condition's unit; 0 or less: it holds."""
    threshold = condition.threshold
    return measured - threshold if condition.is_below else threshold - measured


def is_met(condition: Condition, history: ScopeHistory) -> bool:
    """Whether it holds now."""
    measured = measure(condition, history)
    return measured is not None and distance_of(condition, measured) <= 0


def read_condition(condition: Condition, history: ScopeHistory) -> Reading:
    """The condition as it stands, for people."""
    measured = measure(condition, history)
    if measured is None:
        return Reading(condition.text, None, is_met=False, distance=None)
    distance = distance_of(condition, measured)
    return Reading(condition.text, measured, is_met=distance <= 0, distance=distance)


def describe(condition: Condition, measured: float | None) -> str:
    """One condition in words, with what was measured: ``mem_available is 3.1 %, below 4 %``."""
    name = condition.metric.value
    if condition.window_ns is not None:
        name += f" over {_short(condition.window_ns / 1e9)} s"
    if measured is None:
        return f"{name} is not told here"
    if measured == math.inf:
        return f"{name} is endless: memory does not fall"
    distance = distance_of(condition, measured)
    side = "below" if condition.is_below else "above"
    if distance == 0:
        relation = "just at"
    elif distance < 0:
        relation = side
    else:
        relation = f"not {side}"
    return f"{name} is {_in_unit(measured, condition.unit)}, {relation} {_in_unit(condition.threshold, condition.unit)}"


def _in_unit(value: float, unit: Unit) -> str:
    if unit is Unit.PERCENT:
        return f"{_short(value)} %"
    if unit is Unit.SECONDS:
        return f"{_short(value)} s"
    if unit is BYTES:
        for name in ("B", "KiB", "MiB", "GiB"):
            if value < _KIB:
                return f"{_short(value)} {name}"
            value /= _KIB
        return f"{_short(value)} TiB"
    assert_never(unit)


def _short(value: float) -> str:
    """At most two decimals, none that says nothing."""
    text = f"{value:.2f}"
    return text.rstrip("0").rstrip(".")
