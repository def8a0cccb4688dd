"""A plan survives the way from the command to the watcher; what is none, or of another version, is refused."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.config.load import load_plan
from oomreaper.model import plan as model
from oomreaper.model.plan import Condition, Hooks, Matcher, Plan, Rule, Step, Victims
from oomreaper.watch.plan import LARGEST_PLAN_BYTES, decode_plan, encode_plan

_T = typing.TypeVar("_T")
TEXT = st.text(st.characters())  # lone surrogates too: a file's name may hold any byte
NUMBERS = st.integers(0, 2**63)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
CONDITIONS = st.builds(
    Condition,
    st.sampled_from(model.Metric),
    st.booleans(),
    FLOATS,
    st.sampled_from(model.Unit),
    st.none() | NUMBERS,
    TEXT,
)
STEPS = st.builds(Step, st.sampled_from(model.StepKind), NUMBERS, st.none() | CONDITIONS, TEXT)


def _tuples(of: st.SearchStrategy[_T]) -> st.SearchStrategy[tuple[_T, ...]]:
    return st.lists(of, max_size=2).map(tuple)


RULES = st.builds(Rule, TEXT, TEXT, _tuples(CONDITIONS), NUMBERS, _tuples(CONDITIONS), _tuples(STEPS))
TESTS = st.builds(model.MatchTest, st.sampled_from(model.MatchField), TEXT, TEXT)
MATCHERS = _tuples(st.builds(Matcher, _tuples(TESTS)))
PLANS = st.builds(
    Plan,
    rules=_tuples(RULES),
    victims=st.builds(
        Victims,
        MATCHERS,
        MATCHERS,
        MATCHERS,
        st.sampled_from(model.KillUnit),
        FLOATS,
        st.booleans(),
        st.booleans(),
    ),
    critical=CONDITIONS,
    hooks=st.builds(Hooks, _tuples(TEXT), NUMBERS, _tuples(TEXT), NUMBERS),
    within=st.none() | TEXT,
    events_path=st.none() | TEXT,
    attempts=NUMBERS,
    attempt_ns=NUMBERS,
    timeout_ns=NUMBERS,
    spare_dump=st.booleans(),
    config_path=st.none() | TEXT,
    recompile=_tuples(TEXT),
    clerk=_tuples(TEXT),
)


def _default_object() -> dict[str, typing.Any]:
    plan, _ = load_plan(None)
    raw = json.loads(encode_plan(plan))
    assert isinstance(raw, dict)
    return raw


@given(PLANS)
def test_a_plan_survives_the_way(plan: Plan) -> None:
    """Equal on the other side, type by type, whatever names and paths hold."""
    back = decode_plan(encode_plan(plan))

    assert plan == back
    assert repr(plan) == repr(back)


def test_the_default_plan_survives_the_way() -> None:
    """What most users run with."""
    plan, _ = load_plan(None)

    assert plan == decode_plan(encode_plan(plan))


def test_a_plan_is_one_line() -> None:
    """However its texts are broken, a reader of lines gets it whole."""
    plan, _ = load_plan(None)

    assert b"\n" not in encode_plan(plan._replace(within="/a\nb"))


@pytest.mark.parametrize("message", [b"", b"{}", b"[]", b"null", b'"plan"', b"\xff", b"[" * 100_000, b"{"])
def test_garbage_is_no_plan(message: bytes) -> None:
    """A broken command process cannot make the watcher believe anything."""
    with pytest.raises(ValueError, match=r"."):
        decode_plan(message)


def test_a_plan_beyond_the_limit_is_not_parsed() -> None:
    """What would fill a locked process with memory is refused by its length."""
    with pytest.raises(ValueError, match="too long"):
        decode_plan(b" " * (LARGEST_PLAN_BYTES + 1))


def test_a_plan_of_another_version_is_refused() -> None:
    """A field too many or too few, at any depth: a protection that we do not understand must not be dropped."""
    newer = _default_object()
    newer["victims"]["never_ever"] = []
    older = _default_object()
    del older["victims"]["never"]

    for raw, name in ((newer, "never_ever"), (older, "never")):
        with pytest.raises(ValueError, match=rf"Plan.victims: no Victims of this version: it differs in {name}$"):
            decode_plan(json.dumps(raw).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rules", {}),
        ("rules", [None]),
        ("attempts", "10"),
        ("attempts", True),
        ("attempts", 1.5),
        ("spare_dump", 0),
        ("events_path", 7),
        ("recompile", "abc"),
        ("critical", None),
        ("critical", []),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    """Found when the plan is read and not when the field is needed; the message names it."""
    raw = _default_object()
    raw[field] = value

    with pytest.raises(ValueError, match=f"Plan.{field}"):
        decode_plan(json.dumps(raw).encode())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rules", 0, "when", 0, "metric"), "mem_free"),
        (("rules", 0, "when", 0, "unit"), "KiB"),
        (("rules", 0, "then", 0, "kind"), "reboot"),
        (("victims", "unit"), "tree"),
    ],
)
def test_an_unknown_word_is_refused(path: tuple[str | int, ...], value: str) -> None:
    """A metric, unit or step of a later version is not read as something else."""
    raw = _default_object()
    place: typing.Any = raw
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value

    with pytest.raises(ValueError, match=value):
        decode_plan(json.dumps(raw).encode())
