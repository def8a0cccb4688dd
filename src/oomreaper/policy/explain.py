"""Why: the whole state in plain values, and in words why nothing is done. Pure.

It knows how the rules stand, who would be chosen and who never, and turns that into what ``oomreaper explain`` shows
and any other reader of the watcher's socket gets: one JSON object. It decides nothing: it repeats what ``ladder`` and
``badness`` have found, so what it says is what they did. It refuses to know terminals; that is ``faces.explain``.

A state must fit one message of a SOCK_SEQPACKET socket, so long texts are cut, of a long ranking only its top goes
out, and ``fit_state`` leaves out more where even that is too long; ``counts`` always tells the whole.
Names, paths and command lines are hostile input: each leaves here made printable, and command lines and program
paths leave only for root and for their owner.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.decision import RankedProcess, Reading, RuleReading, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import printable
from oomreaper.model.plan import MACHINE, Condition, Metric, Unit
from oomreaper.model.sample import ScopeSample
from oomreaper.policy.badness import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION = 1
_NS_IN_SECOND = 1_000_000_000
_ROOT_UID = 0
# A row is about 700 bytes; so many of them are 50 KiB. People look at the first five, programs at a few dozen.
_MOST_CHOOSABLE, _MOST_TOO_SMALL, _MOST_PROTECTED = 40, 8, 24
_MOST_LAST = 10
# A rule over all groups has a reading for each of a thousand containers; those nearest to firing are told.
_MOST_RULES = 48
_MOST_NOTES = 12
# A longer command line or path tells a reader no more, and there are many rows.
_MOST_CHARACTERS = 256
_MOST_REASONS = 8
# Under 212,992 bytes, net.core.wmem_default where nobody changed it: what a unix socket takes in one message.
_MOST_MESSAGE_BYTES = 200_000
# From there on a rule is called near: at this share of the way between calm and firing. For mem_available < 4 % that
# is 23 % available, the last fifth of the way.
_NEAR = 0.8
_NAMED_PROTECTED = 3
_CALM = "memory does not run out at the present rate"
_PSI = (Metric.PSI_MEMORY_SOME, Metric.PSI_MEMORY_FULL)


class ScopeView(NamedTuple):
    """One scope as it stands: its sample, and what the watcher made of several. None: not known (yet).

    ``psi_*_percent``: the share of time in the last 10 s or so. ``fall_bytes_per_second`` is negative while more
    becomes available; ``seconds_to_exhaustion`` at that rate, None when nothing runs out.
    """

    sample: ScopeSample
    psi_some_percent: float | None = None
    psi_full_percent: float | None = None
    fall_bytes_per_second: float | None = None
    seconds_to_exhaustion: float | None = None
    next_look_ms: float = 0.0


class Counts(NamedTuple):
    """Of all processes, of which a ranking names only some. ``eligible`` leaves out those to be avoided."""

    considered: int
    eligible: int
    protected: int


class VictimView(NamedTuple):
    """One victim that is being worked on, since ``since_ns``; ``state`` is its place in the reaper's table."""

    identity: Identity
    comm: bytes
    since_ns: int
    state: str


def build_state(
    *,
    now_ns: int,
    scopes: Sequence[ScopeView],
    readings: Sequence[RuleReading],
    ranking: Sequence[RankedProcess],
    counts: Counts | None = None,
    victims: Sequence[VictimView] = (),
    last: Sequence[Mapping[str, object]] = (),
    statistics: Mapping[str, object] | None = None,
    is_dry_run: bool = False,
    config_path: str | None = None,
    kernel_kill_ns: int | None = None,
    reader_uid: int | None = _ROOT_UID,
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """The state event as plain values that JSON can say.

    Args:
        now_ns: CLOCK_MONOTONIC.
        scopes: The machine first, then the groups that rules look at.
        readings: Each rule in each scope.
        ranking: Those who were considered, best victim first.
        counts: How many were; None: no more than are in ``ranking``.
        victims: Who is being worked on.
        last: The records of the last incidents, oldest first; plain values, already fit for this reader.
        statistics: Counters of the watcher; plain values.
        is_dry_run: Nobody is ever signalled.
        config_path: The file the plan came from; None: the defaults.
        kernel_kill_ns: When the kernel killed somebody, as long as the memory of that is awaited; else None.
        reader_uid: Who asks; None: nobody known, who sees nobody's command line.
        notes: Further notes of the watcher, before those of ``why_nothing``.
    """
    counts = _count(ranking) if counts is None else counts
    why = why_nothing(
        readings,
        ranking,
        counts=counts,
        now_ns=now_ns,
        scopes=scopes,
        victims=victims,
        kernel_kill_ns=kernel_kill_ns,
        is_dry_run=is_dry_run,
    )
    told = _choose_readings(readings, scopes)
    choosable = [ranked for ranked in ranking if is_choosable(ranked)]
    protected = [ranked for ranked in ranking if ranked.standing is Standing.PROTECTED]
    if len(told) < len(readings):
        why.append(f"{len(readings) - len(told)} more readings of rules are farther from firing, and left out here")
    return {
        "event": "state",
        "version": VERSION,
        "dry_run": is_dry_run,
        "config": None if config_path is None else _show(config_path),
        "scopes": [_build_scope(view) for view in _choose_scopes(scopes, told)],
        "rules": [_build_rule(reading) for reading in told],
        "ranking": _build_ranking(ranking, choosable, protected, reader_uid),
        "counts": counts._asdict(),
        "victims": [
            {
                "pid": victim.identity.pid,
                "comm": printable(victim.comm),
                "since_s": _round((now_ns - victim.since_ns) / _NS_IN_SECOND),
                "state": victim.state,
            }
            for victim in victims
        ],
        "last": [dict(record) for record in last[-_MOST_LAST:]],
        "notes": [*notes, *why],
        "statistics": {
            key: _round(value) if isinstance(value, float) else value for key, value in (statistics or {}).items()
        },
    }


def fit_state(state: dict[str, object], *, most_bytes: int = _MOST_MESSAGE_BYTES) -> dict[str, object]:
    """The state with so much left out that its JSON is at most ``most_bytes`` long.

    Where it is too long, the lower half of the ranking goes, again and again, then the older half of the last
    records; a state without either is as long as it is.
    """
    while len(json.dumps(state)) > most_bytes:
        ranking, last = state["ranking"], state["last"]
        assert isinstance(ranking, list)
        assert isinstance(last, list)
        if not ranking and not last:
            break
        if ranking:
            state = {**state, "ranking": ranking[: len(ranking) // 2]}
        else:
            state = {**state, "last": last[(len(last) + 1) // 2 :]}
    return state


def why_nothing(
    readings: Sequence[RuleReading],
    ranking: Sequence[RankedProcess],
    *,
    counts: Counts | None = None,
    now_ns: int,
    scopes: Sequence[ScopeView],
    victims: Sequence[VictimView] = (),
    kernel_kill_ns: int | None = None,
    is_dry_run: bool = False,
) -> list[str]:
    """What keeps the watcher from killing now, a sentence each, the most immediate first. Never empty."""
    notes = []
    if is_dry_run:
        notes.append("this is a dry run: nobody is signalled, whatever happens")
    notes += [
        f"a victim is being reaped (pid {victim.identity.pid}, {printable(victim.comm)}): its memory is awaited "
        "before anybody else is taken"
        for victim in victims
    ]
    if kernel_kill_ns is not None:
        notes.append(f"a kernel OOM kill {(now_ns - kernel_kill_ns) / _NS_IN_SECOND:.1f} s ago is awaited")
    notes += _explain_rules(readings, {view.sample.scope: view for view in scopes})
    notes += _explain_ranking(ranking, _count(ranking) if counts is None else counts, scopes)
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES - 1 :] = [f"and {len(notes) - _MOST_NOTES + 1} more of this kind"]
    return notes


def is_choosable(ranked: RankedProcess) -> bool:
    """Whether a kill may hit it: the eligible, and the avoided when there is no other."""
    return ranked.standing in (Standing.ELIGIBLE, Standing.AVOIDED)


def find_nearness(*, measured: float, distance: float, is_below: bool, unit: str, whole: float | None) -> float:
    """How much of the way from calm to met a condition has gone: 0 to 1; 1 when it is met.

    Calm is the whole (100 per cent, or ``whole`` bytes) for what must fall, 0 for what must rise. Seconds have no
    whole: there it is the threshold as a share of the time that is left.
    """
    if distance <= 0:
        return 1.0
    if not math.isfinite(distance) or not math.isfinite(measured):
        return 0.0
    if not is_below:
        threshold = measured + distance
        return min(max(measured / threshold, 0.0), 1.0) if threshold > 0 else 0.0
    threshold = measured - distance
    if unit == Unit.SECONDS.value:
        return min(max(threshold / measured, 0.0), 1.0)
    calm = 100.0 if unit == Unit.PERCENT.value else (whole or measured)
    return min(max((calm - measured) / (calm - threshold), 0.0), 1.0) if calm > threshold else 0.0


# -- plain values ------------------------------------------------------------------------------------------------


def _choose_readings(readings: Sequence[RuleReading], scopes: Sequence[ScopeView]) -> Sequence[RuleReading]:
    """All where there are not too many; else those that have fired, then those nearest to it."""
    if len(readings) <= _MOST_RULES:
        return readings
    view_by_scope = {view.sample.scope: view for view in scopes}

    def _order(reading: RuleReading) -> tuple[bool, float]:
        return not reading.is_active, -_find_gap(reading, view_by_scope.get(reading.scope)).nearness

    return sorted(readings, key=_order)[:_MOST_RULES]


def _choose_scopes(scopes: Sequence[ScopeView], told: Sequence[RuleReading]) -> list[ScopeView]:
    """The first, which is the machine, and those that the told rules look at."""
    names = {reading.scope for reading in told}
    return [view for place, view in enumerate(scopes) if place == 0 or view.sample.scope in names]


def _build_scope(view: ScopeView) -> dict[str, object]:
    sample = view.sample
    return {
        "scope": _show(sample.scope),
        "total_bytes": sample.total_bytes,
        "available_bytes": sample.available_bytes,
        "swap_total_bytes": sample.swap_total_bytes,
        "swap_free_bytes": sample.swap_free_bytes,
        "current_bytes": sample.current_bytes,
        "limit_bytes": sample.limit_bytes,
        "psi_some_percent": _round(view.psi_some_percent),
        "psi_full_percent": _round(view.psi_full_percent),
        "fall_bytes_per_second": _round(view.fall_bytes_per_second),
        "seconds_to_exhaustion": _round(view.seconds_to_exhaustion),
        "next_look_ms": _round(view.next_look_ms),
    }


def _build_rule(reading: RuleReading) -> dict[str, object]:
    rule = reading.rule
    unit_by_text = {condition.text: condition.unit.value for condition in (*rule.recovered, *rule.when)}
    return {
        "rule": _show(rule.name),
        "scope": _show(reading.scope),
        "is_active": reading.is_active,
        "held_s": None if reading.held_ns is None else _round(reading.held_ns / _NS_IN_SECOND),
        "steps": [_show(step.text) for step in rule.then],
        "steps_taken": reading.steps_taken,
        "conditions": [
            {
                "text": _show(each.text),
                "measured": _round(each.measured),
                "unit": unit_by_text.get(each.text, ""),
                "is_met": each.is_met,
                "distance": _round(each.distance),
            }
            for each in reading.readings
        ],
    }


def _build_ranking(
    ranking: Sequence[RankedProcess],
    choosable: Sequence[RankedProcess],
    protected: Sequence[RankedProcess],
    reader_uid: int | None,
) -> list[dict[str, object]]:
    rows = [
        _build_process(ranked, rank, reader_uid) for rank, ranked in enumerate(choosable[:_MOST_CHOOSABLE], start=1)
    ]
    too_small = [ranked for ranked in ranking if ranked.standing is Standing.TOO_SMALL]
    # Who asks why a process is not chosen asks about a large one.
    for others, most in ((too_small, _MOST_TOO_SMALL), (protected, _MOST_PROTECTED)):
        largest = sorted(others, key=lambda ranked: ranked.process.gain_bytes, reverse=True)
        rows += [_build_process(ranked, None, reader_uid) for ranked in largest[:most]]
    return rows


def _build_process(ranked: RankedProcess, rank: int | None, reader_uid: int | None) -> dict[str, object]:
    process, profile = ranked.process, ranked.process.profile
    is_private = reader_uid is None or reader_uid not in (_ROOT_UID, process.uid)
    cmdline = None if profile is None or is_private else profile.cmdline
    exe = None if profile is None or is_private else profile.exe
    cgroup = None if profile is None else profile.cgroup
    return {
        "rank": rank,
        "pid": process.identity.pid,
        "start_time_ticks": process.identity.start_time_ticks,
        "comm": printable(process.comm),
        "uid": process.uid,
        "standing": ranked.standing.name.lower(),
        "points_bytes": _round(ranked.points),
        "gain_bytes": process.gain_bytes,
        "shmem_bytes": process.shmem_bytes,
        "growth_bytes": process.growth_bytes,
        "oom_score_adj": process.oom_score_adj,
        "age_s": _round(process.age_seconds),
        "cmdline": None if cmdline is None else _cut(printable(cmdline[:_MOST_CHARACTERS])),
        "exe": None if exe is None else _cut(printable(exe[:_MOST_CHARACTERS])),
        "cgroup": None if cgroup is None else _show(cgroup),
        "kill_unit": ranked.unit.value,
        "kill_unit_key": _show(ranked.unit_key),
        "reasons": [_show(reason) for reason in ranked.reasons[:_MOST_REASONS]],
    }


def _count(ranking: Sequence[RankedProcess]) -> Counts:
    standings = [ranked.standing for ranked in ranking]
    return Counts(len(ranking), standings.count(Standing.ELIGIBLE), standings.count(Standing.PROTECTED))


def _round(value: float | None) -> float | None:
    """JSON knows neither infinity nor "not a number"; and a thousandth is more than anybody measured."""
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _show(text: str) -> str:
    return _cut(printable(text.encode("utf-8", "backslashreplace")))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 2] + ".."


# -- words -------------------------------------------------------------------------------------------------------


class _Gap(NamedTuple):
    """How far one rule is from firing: the condition that is farthest off says it."""

    nearness: float
    text: str


def _explain_rules(readings: Sequence[RuleReading], view_by_scope: Mapping[str, ScopeView]) -> list[str]:
    if not readings:
        return ["there is no rule that looks at anything here: nothing will be done"]
    under_way, unreadable, calm = [], [], []
    for reading in readings:
        name, view = _name_rule(reading), view_by_scope.get(reading.scope)
        missing = next(
            (each for each in reading.readings if each.measured is None and not _is_calm(reading, each)), None
        )
        if reading.is_active:
            under_way.append(_explain_active(reading, name))
        elif missing is not None:
            unreadable.append(f"rule {name} cannot be read here: {_explain_missing(reading, missing, view)}")
        elif all(each.is_met for each in reading.readings):
            held_s, for_s = (reading.held_ns or 0) / _NS_IN_SECOND, reading.rule.for_ns / _NS_IN_SECOND
            under_way.append(f"rule {name} holds since {held_s:.1f} s; it fires after {for_s:.1f} s")
        else:
            calm.append((_find_gap(reading, view), name))
    notes = under_way
    if calm and not under_way:
        gap, name = max(calm)
        opening = "no rule has fired; the closest is" if gap.nearness >= _NEAR else "no rule is near: the closest is"
        notes.append(f"{opening} {name}, {gap.text}")
    return notes + unreadable


def _explain_active(reading: RuleReading, name: str) -> str:
    steps, taken = reading.rule.then, reading.steps_taken
    recovered = " and ".join(_show(condition.text) for condition in reading.rule.recovered)
    until = f", unless it has recovered ({recovered}) by then" if recovered else ""
    if taken < len(steps):
        return f"rule {name} has fired: {taken} of {len(steps)} steps taken, next is {_show(steps[taken].text)}{until}"
    return f"rule {name} has fired, and all its {len(steps)} steps are taken: it waits for {recovered or 'recovery'}"


def _explain_missing(reading: RuleReading, missing: Reading, view: ScopeView | None) -> str:
    condition = _find_condition(reading, missing)
    if condition is None or view is None:
        return f"{_show(missing.text)} is not told (yet)"
    metric, sample = condition.metric, view.sample
    is_machine = reading.scope == MACHINE
    if metric in _PSI:
        if sample.psi_some_us is None and sample.psi_full_us is None:
            return "this kernel has no PSI" if is_machine else "this group has no PSI"
        return f"{metric.value} needs looks of a whole window first"
    if metric is Metric.ZRAM_USED:
        return "there is no zram"
    if metric in (Metric.MEMORY_CURRENT, Metric.MEM_AVAILABLE) and not is_machine:
        return "the group has no limit, or what is charged to it is not told"
    return f"{metric.value} is not told for this scope"


def _is_calm(reading: RuleReading, each: Reading) -> bool:
    """Nothing runs out, so there is no time to it: that is no lack of the machine."""
    condition = _find_condition(reading, each)
    return condition is not None and condition.metric is Metric.TIME_TO_EXHAUSTION


def _find_gap(reading: RuleReading, view: ScopeView | None) -> _Gap:
    gaps = []
    for each in reading.readings:
        condition = _find_condition(reading, each)
        if each.is_met:
            continue
        if condition is None or each.measured is None or each.distance is None:
            is_calm = condition is not None and condition.metric is Metric.TIME_TO_EXHAUSTION
            gaps.append(_Gap(0.0, _CALM if is_calm else f"{_show(each.text)} does not hold"))
            continue
        whole = _find_whole(condition.metric, view)
        nearness = find_nearness(
            measured=each.measured,
            distance=each.distance,
            is_below=condition.is_below,
            unit=condition.unit.value,
            whole=whole,
        )
        gaps.append(_Gap(nearness, _describe_gap(condition, each.distance, whole)))
    return min(gaps, default=_Gap(1.0, "on the edge of firing"))


def _describe_gap(condition: Condition, distance: float, whole: float | None) -> str:
    if not math.isfinite(distance):
        return _CALM
    verb = "fall" if condition.is_below else "rise"
    if condition.unit is Unit.BYTES:
        amount = size(distance)
    elif condition.unit is Unit.SECONDS:
        amount = f"{distance:.0f} s"
    elif whole is None:
        amount = f"{distance:.1f} %"
    else:
        amount = size(distance / 100 * whole)
    return f"{condition.metric.value} would have to {verb} by {amount}"


def _find_whole(metric: Metric, view: ScopeView | None) -> float | None:
    """What 100 per cent of a metric are, in bytes; None for a share of time."""
    if view is None:
        return None
    if metric in (Metric.MEM_AVAILABLE, Metric.ZRAM_USED):
        return view.sample.total_bytes
    if metric is Metric.SWAP_FREE:
        return view.sample.swap_total_bytes
    return view.sample.limit_bytes if metric is Metric.MEMORY_CURRENT else None


def _find_condition(reading: RuleReading, each: Reading) -> Condition | None:
    conditions = (*reading.rule.when, *reading.rule.recovered)
    return next((condition for condition in conditions if condition.text == each.text), None)


def _name_rule(reading: RuleReading) -> str:
    name = _show(reading.rule.name)
    return name if reading.scope == MACHINE else f"{name} in {_show(reading.scope)}"


def _explain_ranking(ranking: Sequence[RankedProcess], counts: Counts, scopes: Sequence[ScopeView]) -> list[str]:
    if not ranking:
        return ["no process has been looked at yet: that begins when a rule comes near"]
    if any(ranked.standing is Standing.ELIGIBLE for ranked in ranking):
        return []
    avoided = next((ranked for ranked in ranking if ranked.standing is Standing.AVOIDED), None)
    if avoided is not None:
        name = printable(avoided.process.comm)
        return [f"only processes to be avoided are left: {name} ({avoided.process.identity.pid}) would be taken"]
    too_small = [ranked for ranked in ranking if ranked.standing is Standing.TOO_SMALL]
    if too_small:
        gain_bytes = max(ranked.process.gain_bytes for ranked in too_small)
        total_bytes = scopes[0].sample.total_bytes if scopes else 0
        share = f"{gain_bytes / total_bytes * 100:.1f} % of the memory" if total_bytes else size(gain_bytes)
        return [f"nobody is worth a kill: the largest eligible process would give back {share}"]
    largest = sorted(ranking, key=lambda ranked: ranked.process.gain_bytes, reverse=True)[:_NAMED_PROTECTED]
    names = "; ".join(f"{printable(ranked.process.comm)} ({_first_reason(ranked)})" for ranked in largest)
    more = "; .." if counts.considered > len(largest) else ""
    return [f"all {counts.considered} candidates are protected: {names}{more}"]


def _first_reason(ranked: RankedProcess) -> str:
    return _show(ranked.reasons[0]) if ranked.reasons else "no reason was noted"
