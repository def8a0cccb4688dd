"""How a plan is written between the command that makes it and the watcher that keeps it. Pure.

One JSON object, fields by name. The reader takes nothing for granted: at a reload the plan comes from a fresh process
of whatever version of this package lies on the disk by then, and a plan that is half understood would kill whom it
protects. So every field of every value must be there, no other may be, and each must have its type; what does not fit
is a ValueError, and the old plan stays in force.

A new field of the plan needs a row in _READERS; the round-trip test fails without it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from oomreaper.model.plan import (
    Condition,
    Hooks,
    KillUnit,
    Matcher,
    MatchField,
    MatchTest,
    Metric,
    Plan,
    Rule,
    Step,
    StepKind,
    Unit,
    Victims,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Longer is no plan that a locked process should hold; the defaults make 3 KiB, a thousand matchers 150 KiB.
LARGEST_PLAN_BYTES = 4 << 20


def encode_plan(plan: Plan) -> bytes:
    """A plan as one line of JSON, without the newline."""
    return json.dumps(_plain(plan)).encode()


def decode_plan(message: bytes) -> Plan:
    """A plan from its JSON.

    Raises:
        ValueError: It is none, or one of another version of this package; the message says where it does not fit.
    """
    if len(message) > LARGEST_PLAN_BYTES:
        raise ValueError(f"{len(message)} bytes are too long for a plan")
    try:
        raw = json.loads(message)
    except RecursionError as error:
        raise ValueError("it is nested too deep for a plan") from error
    plan: Plan = _rebuild(Plan, raw)
    return plan


def _plain(value: Any) -> Any:
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return {name: _plain(part) for name, part in zip(fields, value, strict=True)}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _rebuild(kind: Any, raw: Any) -> Any:
    """A value from its object; each field through its reader."""
    readers = _READERS[kind]
    if not isinstance(raw, dict) or raw.keys() != readers.keys():
        known = raw.keys() if isinstance(raw, dict) else ()
        differing = sorted(set(readers) ^ set(known))
        raise ValueError(f"no {kind.__name__} of this version: it differs in {', '.join(differing) or 'everything'}")
    values = {}
    for name, reader in readers.items():
        try:
            values[name] = reader(raw[name])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    return kind(**values)


def _one(kind: Any) -> Callable[[Any], Any]:
    return lambda raw: _rebuild(kind, raw)


def _many(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_all(raw: Any) -> Any:
        if type(raw) is not list:
            raise TypeError("not a list")
        return tuple(read(part) for part in raw)

    return read_all


def _maybe(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda raw: None if raw is None else read(raw)


def _exactly(kind: type) -> Callable[[Any], Any]:
    # By its very type: a bool is an int to isinstance.
    def read(raw: Any) -> Any:
        if type(raw) is not kind:
            raise TypeError(f"{type(raw).__name__} instead of {kind.__name__}")
        return raw

    return read


_flag, _whole, _text, _real = _exactly(bool), _exactly(int), _exactly(str), _exactly(float)
_READERS: dict[Any, dict[str, Callable[[Any], Any]]] = {
    Condition: {
        "metric": Metric,
        "is_below": _flag,
        "threshold": _real,
        "unit": Unit,
        "window_ns": _maybe(_whole),
        "text": _text,
    },
    Step: {"kind": StepKind, "after_ns": _whole, "or_when": _maybe(_one(Condition)), "text": _text},
    Rule: {
        "name": _text,
        "scope": _text,
        "when": _many(_one(Condition)),
        "for_ns": _whole,
        "recovered": _many(_one(Condition)),
        "then": _many(_one(Step)),
    },
    MatchTest: {"field": MatchField, "regex": _text, "text": _text},
    Matcher: {"tests": _many(_one(MatchTest))},
    Victims: {
        "never": _many(_one(Matcher)),
        "avoid": _many(_one(Matcher)),
        "prefer": _many(_one(Matcher)),
        "unit": KillUnit,
        "smallest_percent": _real,
        "honour_oom_group": _flag,
        "honour_xattrs": _flag,
    },
    Hooks: {
        "pre_kill": _many(_text),
        "pre_kill_timeout_ns": _whole,
        "post_kill": _many(_text),
        "post_kill_timeout_ns": _whole,
    },
    Plan: {
        "rules": _many(_one(Rule)),
        "victims": _one(Victims),
        "critical": _one(Condition),
        "hooks": _one(Hooks),
        "within": _maybe(_text),
        "events_path": _maybe(_text),
        "attempts": _whole,
        "attempt_ns": _whole,
        "timeout_ns": _whole,
        "spare_dump": _flag,
        "config_path": _maybe(_text),
        "recompile": _many(_text),
        "clerk": _many(_text),
    },
}
