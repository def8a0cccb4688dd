"""How people write conditions, durations and steps: text to values. Pure; used when a plan is made, never resident.

::

    condition = metric ("<" | "<=" | ">" | ">=") threshold ["of limit"] ["over" duration]
    threshold = number "%" | number ("K" | "M" | "G" | "T")["iB"] | duration
    step      = kind ["after" duration] ["or" condition]
    duration  = number ("ms" | "s" | "min" | "h")

It knows which metric is told in which unit, and on which side of its threshold a shortage lies: a rule that asks for
*much* free memory before it kills is a mistake, and is refused. ``recovered`` levels lie on the other side. ``<`` and
``<=`` mean the same: at the threshold the condition holds.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.plan import Condition, Metric, Step, StepKind, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable

_MS = 1_000_000
_SECOND = 1_000_000_000
_NS_OF_UNIT = {"ms": _MS, "s": _SECOND, "min": 60 * _SECOND, "h": 3600 * _SECOND}
# What people write for a unit that we spell in another way. "m" could be taken for a month or a thousandth.
_MEANT_UNIT = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "m": "min", "minute": "min", "minutes": "min"}
_BYTES_OF_SUFFIX = {letter: 1024**power for power, letter in enumerate("KMGT", start=1)}

# The kernel updates its own averages every 2 s, and a trigger watches 0.5 s to 10 s; below that, one slow page is
# already a large share, and beyond a minute the shortage is over one way or the other.
SHORTEST_WINDOW_NS = 500 * _MS
LONGEST_WINDOW_NS = 60 * _SECOND
DEFAULT_WINDOW_NS = 10 * _SECOND
# No ladder waits longer than a day for its next step: such a number is a slip of the unit.
LONGEST_DURATION_NS = 24 * 3600 * _SECOND
# A forecast from the last seconds says nothing about what comes later than this.
LONGEST_FORECAST_NS = 600 * _SECOND
# More than any machine has; also keeps what was written inside what a float holds exactly enough.
_MOST_BYTES = 1 << 60
_PER_CENT = 100.0

_NUMBER = r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(_NUMBER + r"\s*(?P<unit>[A-Za-z]*)")
_SIZE = re.compile(_NUMBER + r"\s*(?P<suffix>[KMGTkmgt])(?:iB)?")
_PERCENT = re.compile(_NUMBER + r"\s*%")
_OPERATOR = re.compile(r"<=|>=|==|!=|=<|=>|<|>|=")
_OVER = re.compile(r"^(?P<threshold>.*?)\s+over\b\s*(?P<window>.*)$", re.DOTALL)
_OF = re.compile(r"^(?P<threshold>.*?)\s+of\b\s*(?P<whole>.*)$", re.DOTALL)
_OR = re.compile(r"(?:^|\s+)or\b\s*")
_AFTER = re.compile(r"^after\b\s*")


class ConditionError(ValueError):
    """What was written is no condition, duration or step; the message says what was found and what is allowed."""


class _Shape(NamedTuple):
    """How one metric is written: the side of a shortage, its units, whether it is averaged, what it is a part of."""

    is_below: bool
    units: tuple[Unit, ...]
    is_averaged: bool = False
    whole: str | None = None


_SHAPE_OF_METRIC = {
    Metric.MEM_AVAILABLE: _Shape(is_below=True, units=(Unit.PERCENT, Unit.BYTES)),
    Metric.SWAP_FREE: _Shape(is_below=True, units=(Unit.PERCENT, Unit.BYTES)),
    Metric.PSI_MEMORY_SOME: _Shape(is_below=False, units=(Unit.PERCENT,), is_averaged=True),
    Metric.PSI_MEMORY_FULL: _Shape(is_below=False, units=(Unit.PERCENT,), is_averaged=True),
    Metric.MEMORY_CURRENT: _Shape(is_below=False, units=(Unit.PERCENT, Unit.BYTES), whole="limit"),
    Metric.TIME_TO_EXHAUSTION: _Shape(is_below=True, units=(Unit.SECONDS,)),
    Metric.ZRAM_USED: _Shape(is_below=False, units=(Unit.PERCENT, Unit.BYTES)),
}
_EXAMPLE_OF_UNIT = {Unit.PERCENT: "4%", Unit.BYTES: "500M", Unit.SECONDS: "5s"}


def parse_condition(text: str, *, is_recovery: bool = False) -> Condition:
    """Read ``"mem_available < 4%"`` and its like.

    Args:
        text: What the user wrote.
        is_recovery: It says when a shortage is over: then it lies on the other side (``mem_available > 8%``).

    Raises:
        ConditionError: It makes no sense; the message says what was found and what is allowed.
    """
    text = text.strip()
    operator = _OPERATOR.search(text)
    if operator is None:
        raise ConditionError(f"{text!r} compares nothing; a condition reads like 'mem_available < 4%'")
    metric = _parse_metric(text[: operator.start()].strip())
    shape = _SHAPE_OF_METRIC[metric]
    is_below = _parse_operator(
        operator.group(), metric, is_below=shape.is_below is not is_recovery, is_recovery=is_recovery
    )
    rest = text[operator.end() :].strip()
    window_ns = None
    if (over := _OVER.match(rest)) is not None:
        if not shape.is_averaged:
            raise ConditionError(
                f"{metric.value} is read as it stands; 'over {over['window']}' goes with psi_ metrics only"
            )
        rest, window_ns = over["threshold"], _parse_window(over["window"])
    elif shape.is_averaged:
        window_ns = DEFAULT_WINDOW_NS
    if (of := _OF.match(rest)) is not None:
        if shape.whole is None or of["whole"] != shape.whole:
            meant = f"allowed is 'of {shape.whole}'" if shape.whole else "leave it out"
            raise ConditionError(f"{metric.value} is not told 'of {of['whole']}'; {meant}")
        rest = of["threshold"]
    threshold, unit = _parse_threshold(rest, metric, shape)
    if threshold == 0 and not is_below:
        raise ConditionError(f"{text!r} always holds; write a threshold above 0")
    return Condition(metric, is_below, threshold, unit, window_ns, text)


def parse_duration_ns(text: str) -> int:
    """Read ``"10s"``, ``"500ms"``, ``"2min"``, ``"1h"``, ``"1.5 s"``.

    Raises:
        ConditionError: It is no duration, or longer than a day.
    """
    text = text.strip()
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConditionError(f"{text!r} is no duration; write one like 500ms, 10s, 2min or 1h")
    unit = match["unit"]
    if unit not in _NS_OF_UNIT:
        if not unit:
            raise ConditionError(f"{text!r} has no unit; allowed are ms, s, min and h: did you mean {text}s?")
        meant = _MEANT_UNIT.get(unit.lower()) or (unit.lower() if unit.lower() in _NS_OF_UNIT else None)
        hint = f": did you mean {match['number']}{meant}?" if meant else ""
        raise ConditionError(f"{unit!r} is no unit of time; allowed are ms, s, min and h{hint}")
    duration_ns = round(float(match["number"]) * _NS_OF_UNIT[unit])
    if duration_ns > LONGEST_DURATION_NS:
        raise ConditionError(f"{text!r} is too long; at most 24h is allowed")
    return duration_ns


def parse_step(text: str) -> Step:
    """Read ``"kill after 10s or mem_available < 2%"``; ``after`` and ``or`` may each be left out.

    Without ``after`` the step is due as soon as the step before it was taken.

    Raises:
        ConditionError: It is no step, or its duration or condition is none.
    """
    text = text.strip()
    word, _, rest = text.partition(" ")
    kinds = [kind.value for kind in StepKind]
    if word not in kinds:
        raise ConditionError(f"unknown step {word!r}; allowed are {', '.join(kinds)}{_did_you_mean(word, kinds)}")
    rest = rest.strip()
    after_text, or_text = rest, None
    if (alternative := _OR.search(rest)) is not None:
        after_text, or_text = rest[: alternative.start()], rest[alternative.end() :]
    after_ns = 0
    if after_text:
        after = _AFTER.match(after_text)
        if after is None:
            raise ConditionError(
                f"{after_text!r} makes no sense in a step; one reads like 'kill after 10s or mem_available < 2%'"
            )
        after_ns = parse_duration_ns(after_text[after.end() :])
    or_when = None if or_text is None else parse_condition(or_text)
    return Step(StepKind(word), after_ns, or_when, text)


def _parse_metric(word: str) -> Metric:
    names = [metric.value for metric in Metric]
    if word not in names:
        raise ConditionError(f"unknown metric {word!r}; allowed are {', '.join(names)}{_did_you_mean(word, names)}")
    return Metric(word)


def _parse_operator(operator: str, metric: Metric, *, is_below: bool, is_recovery: bool) -> bool:
    if operator not in {"<", "<=", ">", ">="}:
        raise ConditionError(f"{operator!r} does not compare; allowed are < <= > >=")
    if operator.startswith("<") is not is_below:
        allowed, side = ("<", "low") if is_below else (">", "high")
        when = (
            "a shortage is over, as in 'recovered'"
            if is_recovery
            else "memory is short (only 'recovered' asks the other way)"
        )
        raise ConditionError(f"found {operator!r}, allowed is {allowed!r}: {metric.value} is {side} when {when}")
    return is_below


def _parse_window(text: str) -> int:
    window_ns = parse_duration_ns(text)
    if not SHORTEST_WINDOW_NS <= window_ns <= LONGEST_WINDOW_NS:
        raise ConditionError(f"a pressure cannot be averaged over {text!r}; allowed is 500ms to 60s")
    return window_ns


def _parse_threshold(text: str, metric: Metric, shape: _Shape) -> tuple[float, Unit]:
    if Unit.PERCENT in shape.units and (percent := _PERCENT.fullmatch(text)) is not None:
        value = float(percent["number"])
        if value > _PER_CENT:
            raise ConditionError(f"{text!r} is too much for {metric.value}; allowed is 0% to 100%")
        return value, Unit.PERCENT
    if Unit.BYTES in shape.units and (size := _SIZE.fullmatch(text)) is not None:
        value = float(size["number"]) * _BYTES_OF_SUFFIX[size["suffix"].upper()]
        if value > _MOST_BYTES:
            raise ConditionError(f"{text!r} is more memory than there is; did you mean another unit?")
        return float(round(value)), Unit.BYTES
    if Unit.SECONDS in shape.units and _DURATION.fullmatch(text) is not None:
        duration_ns = parse_duration_ns(text)
        if duration_ns > LONGEST_FORECAST_NS:
            raise ConditionError(f"{text!r} is too far ahead for a forecast; at most 10min is allowed")
        return duration_ns / _SECOND, Unit.SECONDS
    allowed = " or ".join(_EXAMPLE_OF_UNIT[unit] for unit in shape.units)
    found = repr(text) if text else "nothing"
    raise ConditionError(f"{metric.value} is compared with a value like {allowed}; found {found}")


def _did_you_mean(word: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else ""
