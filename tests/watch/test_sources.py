"""Sources over the real kernel: a new plan opens nothing twice, and hints keep their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from oomreaper.config.load import load_plan
from oomreaper.linux import proc
from oomreaper.model.plan import MACHINE
from oomreaper.watch.sources import Sources
from tests.real.watching import memory_group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.model.plan import Plan
    from tests.real.watching import Group

SECOND = 1_000_000_000
GROUPS = """
[[rule]]
name = "groups"
scope = "*"
when = ["memory_current > 95% of limit"]
then = ["warn"]
"""

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory")


class Seen:
    """Sources, and what they said."""

    def __init__(self, plan: Plan) -> None:
        self.troubles: list[str] = []
        self.gone: list[str] = []
        self.proc = proc.open_root()
        self.sources = Sources(
            plan, self.proc, on_trouble=lambda text, _now_ns: self.troubles.append(text), on_gone=self.gone.append
        )
        self.now_ns = SECOND

    def walk(self) -> None:
        """Let time pass until the groups have been gone through at least once."""
        for _ in range(12):
            self.now_ns += SECOND
            self.sources.on_time(self.now_ns)

    def close(self) -> None:
        """Close it."""
        self.sources.close()
        os.close(self.proc)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One with a rule for groups."""
    path = tmp_path / "oomreaper.toml"
    path.write_text(GROUPS, encoding="utf-8")
    plan, _ = load_plan(str(path))
    return plan


@pytest.fixture
def group() -> Iterator[Group]:
    """With a limited group below it."""
    with memory_group(100) as outer:
        yield outer


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_new_plan_opens_no_group_twice(plan: Plan, group: Group) -> None:
    """After ten reloads as many descriptors and hints as before, under the same keys: no wake is lost or doubled."""
    before = _descriptors()
    with group.inner("one", 50) as one:
        seen = Seen(plan._replace(within=group.scope))
        seen.walk()
        opened, hints = _descriptors(), seen.sources.hints()
        scopes = seen.sources.scopes()
        for _ in range(10):
            seen.sources.adopt(plan._replace(within=group.scope), seen.now_ns)
            seen.walk()
        again, hints_again = _descriptors(), seen.sources.hints()
        seen.close()

        assert scopes == [MACHINE, one.scope]
        assert again == opened
        assert hints_again == hints
    assert _descriptors() == before


def test_a_group_that_goes_is_forgotten_and_its_hints_with_it(plan: Plan, group: Group) -> None:
    """Its descriptors are closed, the version counts, and one of the same name later is another."""
    seen = Seen(plan._replace(within=group.scope))
    seen.walk()
    alone, version = _descriptors(), seen.sources.version
    with group.inner("one", 50) as one:
        seen.walk()
        there = seen.sources.hints()
        assert one.scope in seen.sources.scopes()
    seen.walk()
    assert seen.sources.read(one.scope, seen.now_ns) is None
    gone, left = list(seen.gone), _descriptors()
    with group.inner("one", 50):
        seen.walk()
        later = seen.sources.hints()
    seen.close()

    assert gone == [one.scope]
    assert left == alone
    assert seen.sources.version > version
    assert {hint.key for hint in there.values()} != {hint.key for hint in later.values()}
