"""The watcher on the real kernel: a real shortage within a group of our own, and who pays for it."""

from __future__ import annotations

import pytest

from tests.real.watching import memory_group, watching

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")


def test_a_hog_is_chosen_over_bystanders_and_the_rest_survives() -> None:
    """On its defaults: the one who takes the memory is asked to end, its memory comes back, nobody else is touched."""
    with memory_group(200) as group:
        bystanders = [group.start_idle(30), group.start_idle(20)]
        with watching(group) as watcher:
            hog = group.start_hog(400)
            status = hog.wait()
            settled = watcher.await_event("settled")

            assert status == -15
            assert (hog.pid, "exited") == (settled["pid"], settled["outcome"])
            assert [hog.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert all(bystander.is_alive for bystander in bystanders)
