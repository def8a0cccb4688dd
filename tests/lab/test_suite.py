"""What is read from pytest's output in a guest."""

from __future__ import annotations

from lab.suite import count_done, read_output

_LINES = [
    "tests/real/test_reap.py::test_a PASSED          [ 33%]",
    "tests/real/test_reap.py::test_b[x y] FAILED     [ 66%]",
    "tests/real/test_reap.py::test_c SKIPPED (needs swap: none) [100%]",
    "a victim said: test PASSED",
    "FAILED tests/real/test_reap.py::test_b[x y] - AssertionError",
    "SKIPPED [1] tests/conftest.py:128: needs swap: none",
]


def test_the_summary_is_read() -> None:
    """Figures, failures and the reasons of skips."""
    result = read_output([*_LINES, "=== 1 failed, 1 passed, 1 skipped in 12.34s ==="])

    assert (result.passed, result.failed, result.skipped) == (1, 1, 1)
    assert result.failures == (_LINES[4],)
    assert result.skips == (_LINES[5],)
    assert result.is_complete
    assert not result.is_good


def test_errors_are_failures() -> None:
    """A fixture that fails is no success, nor is a run in which nothing ran."""
    broken = read_output(["=== 3 passed, 2 errors in 1.00s ==="])
    empty = read_output(["=== no tests ran in 0.01s ==="])
    skipped = read_output(["=== 3 skipped in 0.01s ==="])

    assert broken.failed == 2
    assert not broken.is_good
    assert not empty.is_good
    assert not skipped.is_good


def test_a_suite_without_a_summary_is_cut_off() -> None:
    """However many tests have passed until then."""
    assert not read_output(_LINES[:1]).is_complete
    assert read_output([*_LINES[:1], "=== 1 passed in 3.21s (0:00:03) ==="]).is_good


def test_progress_counts_tests_and_not_words() -> None:
    """What a test prints is no result."""
    assert count_done(_LINES) == 3
