"""The unit file: every line has a reason, and none takes away what the watcher needs."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from oomreaper.linux import syscalls
from oomreaper.linux.privileges import NEEDED
from tools.write_service_page import _FOR_HOOKS, _NOT_SET, PAGE, UNIT, parse_unit, render

if TYPE_CHECKING:
    from pathlib import Path

DIRECTIVES = parse_unit(UNIT.read_text(encoding="utf-8"))
VALUES = {each.name: each.value for each in DIRECTIVES}

# What is called beyond what every program calls: the resident's own calls, and what Python makes of our modules.
CALLS = {
    "capset", "prctl", "mlockall", "sched_setscheduler", "setpriority", "setrlimit", "prlimit64", "epoll_create1",
    "epoll_ctl", "epoll_wait", "eventfd2", "memfd_create", "timerfd_create", "signalfd4", "accept4", "sendmsg",
    "recvmsg", "pwritev2", "pread64", "getxattr", "close_range", "clone", "vfork", "execve", "wait4", "waitid",
    "kill", "socketpair",
}  # fmt: skip
# Groups of the filter hold these since before systemd 247, by systemd.exec(5); asked from systemd-analyze where it is.
GROUP = "@system-service"


def test_every_line_has_a_reason() -> None:
    """A sentence stands right above each setting: no setting is there because others have it."""
    assert len(DIRECTIVES) > 40
    for each in DIRECTIVES:
        assert re.search(r"\w.*\w\)?\.$", each.reason), each.name


def test_no_setting_stands_twice() -> None:
    """A second line of the same name would be added to the first, or replace it, without being seen."""
    assert len(VALUES) == len(DIRECTIVES)


def test_the_capabilities_are_those_of_the_table() -> None:
    """The unit bounds what the watcher keeps: no less, and no more."""
    assert VALUES["CapabilityBoundingSet"].split() == sorted(NEEDED)


def test_nothing_is_set_that_takes_the_purpose_away() -> None:
    """The settings that the manual says must not be set are not."""
    assert not set(_NOT_SET) & set(VALUES)
    assert set(_FOR_HOOKS) <= set(VALUES)


def test_the_filter_lets_our_calls_through() -> None:
    """Every system call that is declared by number, and those that Python makes for us, are in the filter."""
    allowed = set(VALUES["SystemCallFilter"].split())
    declared = {name.removeprefix("SYS_").lower() for name in dir(syscalls) if name.startswith("SYS_")}

    assert GROUP in allowed
    assert {"process_mrelease", "pidfd_open", "pidfd_send_signal", "kcmp"} <= declared
    assert declared <= allowed
    assert "process_madvise" in allowed
    members = _members_of(GROUP)
    if members is not None:
        assert members | allowed >= CALLS


def test_the_unit_s_command_exists() -> None:
    """It starts what the package installs under a name that the command line knows."""
    assert VALUES["ExecStart"] == "/usr/bin/oomreaper run"


def test_systemd_understands_it(tmp_path: Path) -> None:
    """systemd-analyze verify finds no fault but what an older systemd than the unit's says it does not know."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return  # nobody here who could say; the other tests read the file themselves
    text = UNIT.read_text(encoding="utf-8").replace("/usr/bin/oomreaper run", "/bin/true")
    (tmp_path / "oomreaper.service").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [tool, "verify", "--man=no", str(tmp_path / "oomreaper.service")], capture_output=True, text=True, check=False
    )
    faults = [
        line
        for line in done.stderr.splitlines()
        if "oomreaper.service" in line and "notify-reload" not in line and "Unknown system call" not in line
    ]

    assert faults == []


def test_the_manual_page_is_made_from_the_unit() -> None:
    """docs/man/oomreaper.service.8 cannot drift from the file, and shows each of its lines."""
    page = render()

    assert page == PAGE.read_text(encoding="utf-8"), "run: make docs"
    for name in VALUES:
        assert f".B {name}=" in page


@functools.cache
def _members_of(group: str) -> set[str] | None:
    """The calls of a group of systemd's, with those of the groups in it; None where systemd is not installed."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return None
    done = subprocess.run([tool, "syscall-filter", group], capture_output=True, text=True, check=False)
    members: set[str] = set()
    for line in done.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            members |= _members_of(word) or set()
        elif word and not word.startswith("#"):
            members.add(word)
    return members or None
