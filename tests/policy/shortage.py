"""Samples and rules for the tests of the rules: a machine of 100 GiB, so that a per cent is a GiB."""

from __future__ import annotations

from oomreaper.model.plan import MACHINE, Rule
from oomreaper.model.sample import ScopeSample
from oomreaper.policy.grammar import parse_condition, parse_duration_ns, parse_step
from oomreaper.policy.history import ScopeHistory

MS = 1_000_000
SECOND = 1_000 * MS
GIB = 1 << 30
# Monotonic time starts somewhere.
START_NS = 5_000 * SECOND


def sample(
    at_s: float,
    *,
    available_gib: float = 50.0,
    total_gib: float = 100.0,
    swap_gib: tuple[float, float] = (0.0, 0.0),
    some_s: float | None = 0.0,
    full_s: float | None = 0.0,
    scope: str = MACHINE,
    **others: int | None,
) -> ScopeSample:
    """A sample ``at_s`` seconds after the start; ``swap_gib`` is free and total; stalls are totals."""
    return ScopeSample(
        scope,
        START_NS + round(at_s * SECOND),
        int(total_gib * GIB),
        int(available_gib * GIB),
        swap_free_bytes=int(swap_gib[0] * GIB),
        swap_total_bytes=int(swap_gib[1] * GIB),
        psi_some_us=None if some_s is None else round(some_s * 1e6),
        psi_full_us=None if full_s is None else round(full_s * 1e6),
        **others,
    )


def history(*samples: ScopeSample) -> ScopeHistory:
    """A history of these."""
    past = ScopeHistory()
    for each in samples:
        assert past.add(each)
    return past


def at(at_s: float) -> int:
    """A moment, in ns."""
    return START_NS + round(at_s * SECOND)


def rule(
    *when: str,
    then: tuple[str, ...] = ("kill",),
    hold: str = "0s",
    recovered: tuple[str, ...] = (),
    scope: str = MACHINE,
) -> Rule:
    """A rule as people write it."""
    return Rule(
        "rule " + " and ".join(when),
        scope,
        tuple(parse_condition(text) for text in when),
        parse_duration_ns(hold),
        tuple(parse_condition(text, is_recovery=True) for text in recovered),
        tuple(parse_step(text) for text in then),
    )
