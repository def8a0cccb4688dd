"""The house rules of a test run.

- A run says at its head what it runs on: Python, kernel, CPUs, requirements, seed.
- A test that needs something of the machine says so with ``@pytest.mark.needs``; that is the only way to skip, and
  with CI=true a skip that the machine could have spared us, or one made in another way, fails the run.
- A run leaves the machine as it found it; what it has left is removed, and fails the run.
- SIGTERM ends a run as Ctrl-C does: with every ``finally`` on the way.
"""

from __future__ import annotations

import os
import platform
import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.requirements import REQUIREMENTS
from tests.victims.leftovers import Watch

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

_SEED_OPTION = "hypothesis_seed"


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came. A KeyboardInterrupt, since that is what pytest unwinds a whole run for."""


@dataclass
class _Run:
    """What is known of this run at its end."""

    watch: Watch = field(default_factory=Watch)
    excused: set[str] = field(default_factory=set)
    """Ids of the tests that were skipped for something this machine cannot offer."""
    complaints: list[str] = field(default_factory=list)
    """Each fails the run."""
    inexcusable_skips: list[str] = field(default_factory=list)


_RUN = pytest.StashKey[_Run]()


def _judge_by_results_alone() -> None:
    """No property fails for the time that an example took: that is the host's, who may take our CPU away."""
    from hypothesis import HealthCheck, settings  # after its own start, which chooses a profile by the surroundings

    settings.register_profile(
        "house",
        parent=settings.get_profile(settings.get_current_profile_name()),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("house")


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before all others, Hypothesis among them: choose a seed, unless the command line did."""
    config.stash[_RUN] = _Run()
    if getattr(config.option, _SEED_OPTION, "absent") is None:
        setattr(config.option, _SEED_OPTION, str(random.SystemRandom().randrange(2**32)))
    _judge_by_results_alone()
    before = signal.signal(signal.SIGTERM, _raise_terminated)

    def give_back() -> None:
        signal.signal(signal.SIGTERM, before)

    config.add_cleanup(give_back)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the run runs on."""
    missing = {name: requirement.missing() for name, requirement in REQUIREMENTS.items()}
    seed = getattr(config.option, _SEED_OPTION, None)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    cpus = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs"
    return [
        f"machine: Python {platform.python_version()}, {system}, {cpus}",
        f"hypothesis seed: {seed if seed is not None else 'hypothesis is not loaded'}",
        "has: " + " ".join(name for name, reason in missing.items() if reason is None),
        *(f"lacks: {name}: {reason}" for name, reason in missing.items() if reason is not None),
    ]


def _needs_of(item: pytest.Item) -> list[str]:
    return [str(name) for marker in item.iter_markers("needs") for name in marker.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a need that has no name in tests/requirements.py: misspelt, it would hide a test or fail it."""
    for item in items:
        for name in _needs_of(item):
            if name not in REQUIREMENTS:
                message = f"{item.nodeid} needs {name!r}, which tests/requirements.py does not know"
                raise pytest.UsageError(message)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs something that is missing, with the reason."""
    lacks = [REQUIREMENTS[name] for name in _needs_of(item) if REQUIREMENTS[name].missing() is not None]
    if lacks:
        # One thing that cannot be had is excuse enough: the others would not have made the test run.
        if not all(requirement.obtainable() for requirement in lacks):
            item.config.stash[_RUN].excused.add(item.nodeid)
        pytest.skip("needs " + "; ".join(f"{lack.name}: {lack.missing()}" for lack in lacks))


def _note_skip(run: _Run, report: pytest.TestReport | pytest.CollectReport) -> None:
    is_expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not is_expected_failure and report.nodeid not in run.excused:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        run.inexcusable_skips.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note each skip of a test that is not excused."""
    report = yield
    _note_skip(item.config.stash[_RUN], report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Note each skip of a whole module, which no marker can have made."""
    report = yield
    _note_skip(collector.config.stash[_RUN], report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last fixture: look for what is left, remove it, and fail the run for it."""
    run = session.config.stash[_RUN]
    leftovers = run.watch.find_settled()
    run.complaints += [f"left behind, removed now: {leftover.what}" for leftover in leftovers]
    if leftovers:
        run.complaints += [f"cannot be removed: {what}" for what in run.watch.remove(leftovers)]
    if os.environ.get("CI") == "true":
        run.complaints += [f"skipped without an excuse: {skip}" for skip in run.inexcusable_skips]
    if run.complaints and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why the run fails, where no test says it; and which skips would fail it in CI."""
    run = config.stash[_RUN]
    if run.complaints:
        terminalreporter.section("house rules", red=True, bold=True)
        for complaint in run.complaints:
            terminalreporter.line(complaint, red=True)
    elif run.inexcusable_skips:
        terminalreporter.section("skips that fail a run with CI=true", yellow=True)
        for skip in run.inexcusable_skips:
            terminalreporter.line(skip)
