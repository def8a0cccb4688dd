"""What a part that fails costs: itself, for a while; and what is no such part."""

from __future__ import annotations

import errno
import os

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.watch.guard import DECISION, Guard, describe, trace

SECOND = 1_000_000_000


class Told:
    """Who is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str, _now_ns: int) -> None:
        """One more."""
        self.texts.append(text)


def _fail(error: BaseException) -> None:
    raise error


def _good(*_: object) -> None:
    pass


def test_a_part_that_fails_is_told_of_once_and_rests_ever_longer() -> None:
    """1 s, 2 s, 4 s up to a minute; the same words are said once."""
    told = Told()
    guard = Guard(told)
    rests = []
    now_ns = 0
    for _ in range(9):
        assert not guard.part("clerk", now_ns, _fail, ValueError("no"))
        until_ns = guard.next_deadline_ns(now_ns)
        assert until_ns is not None
        rests.append((until_ns - now_ns) // SECOND)
        assert guard.is_resting("clerk", until_ns - 1)
        assert not guard.is_resting("clerk", until_ns)
        now_ns = until_ns

    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(told.texts) == 1
    assert told.texts[0].startswith("the clerk failed (ValueError: no, at test_guard.py:")
    assert guard.failures == 9


def test_a_part_that_works_again_begins_anew_and_others_do_not_rest() -> None:
    """After a success the next rest is a second again; each part rests by itself."""
    guard = Guard(Told())
    guard.part("a", 0, _fail, OSError(errno.EIO, "bad"))
    guard.part("a", 2 * SECOND, _fail, OSError(errno.EIO, "bad"))

    assert not guard.is_resting("b", 2 * SECOND)
    assert guard.part("a", 9 * SECOND, _good, 1, 2)
    assert not guard.is_resting("a", 9 * SECOND)

    guard.part("a", 10 * SECOND, _fail, OSError(errno.EIO, "bad"))

    assert guard.next_deadline_ns(10 * SECOND) == 11 * SECOND


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError()])
def test_the_kernels_refusal_costs_a_decision_a_pause(error: Exception) -> None:
    """EMFILE or no memory in a decision: told, and taken up again after 100 ms."""
    told = Told()
    guard = Guard(told)

    assert not guard.decision(5, _fail, error)
    assert guard.is_resting(DECISION, 5)
    assert not guard.is_resting(DECISION, 5 + SECOND // 10)
    assert len(told.texts) == 1


@pytest.mark.parametrize("error", [KeyError("x"), BrokenPromiseError("y"), AssertionError(), ValueError("z")])
def test_a_fault_of_ours_comes_out_of_a_decision(error: Exception) -> None:
    """After it nothing that is remembered can be trusted: who decided wrongly must not decide on."""
    with pytest.raises(type(error)):
        Guard(Told()).decision(0, _fail, error)


def test_the_end_is_not_held_up() -> None:
    """KeyboardInterrupt and SystemExit pass through every edge."""
    for error in (KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)):
            Guard(Told()).part("a", 0, _fail, error)


def test_who_tells_may_fail_too() -> None:
    """An error that cannot be told is counted, and nothing more comes of it."""

    def tell(_text: str, _now_ns: int) -> None:
        raise OSError(errno.EPIPE, "gone")

    guard = Guard(tell)

    assert not guard.part("a", 0, _fail, ValueError())
    assert (guard.failures, guard.untold) == (1, 1)


def test_an_endless_variety_of_errors_is_told_within_bounds() -> None:
    """Errors that each have other words are told 200 times, not without end."""
    told = Told()
    guard = Guard(told)
    for number in range(1_000):
        guard.part("a", 0, _fail, ValueError(number))

    assert len(told.texts) == 200


def test_an_error_is_described_in_one_line_with_its_place() -> None:
    """Its type, its words, the file, line and function that it came from; the whole way by ``trace``."""
    try:
        _fail(KeyError("x"))
    except KeyError as error:
        line, way = describe(error), trace(error)

    assert line.startswith("KeyError: 'x', at test_guard.py:")
    assert line.endswith(" _fail")
    assert [step.split()[1] for step in way] == [
        "test_an_error_is_described_in_one_line_with_its_place",
        "_fail",
    ]
    assert describe(ValueError("never raised")) == "ValueError: never raised"
