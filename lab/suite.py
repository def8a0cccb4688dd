"""The tests of the `reap` victims, run in a guest: the same suite as on the host, on a kernel of the lab's choice.

The guest has what a container has not: cgroup v2 with the memory controller, CAP_SYS_RESOURCE, loop devices, swap. What
a guest lacks, a test says when it is skipped; the reasons are kept with the result. A kernel's result is one JSON line,
the last one of a kernel counts.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lab.packages import LabError, say
from lab.seam import HOME, MachineSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.machine import Machine, Machines

RESULTS = Path(__file__).resolve().parent / "results/suite/results.jsonl"
TESTS = ("tests/real/test_reap.py", "tests/real/test_victims.py", "tests/real/test_side_jobs.py")
_MEMORY_MIB, _CPUS, _DISK_MIB = 2048, 2, 1024
# A tenth of the host's speed, at worst; the suite takes some two minutes there.
_LIMIT_S = 1800.0
# The net under each test is 120 s on a real machine.
_TEST_LIMIT_S = 600
_PROGRESS_S = 30.0
# The tests want a directory on a disk: no file of a tmpfs can be swap, or be mounted as a file system of its own.
_PREPARE = """\
swapoff /dev/vda
mkfs.ext4 -q -F /dev/vda
mount /dev/vda /tmp
chmod 1777 /tmp
mkdir -p /run/freezer
mount -t cgroup -o freezer freezer /run/freezer
"""


class SuiteResult(NamedTuple):
    """What came of the suite on one kernel."""

    kernel: str
    release: str
    date: str
    tests: tuple[str, ...]
    """What was asked for: a part of the suite is no whole one."""
    passed: int
    failed: int
    skipped: int
    duration_s: float
    failures: tuple[str, ...]
    skips: tuple[str, ...]
    is_complete: bool

    @property
    def is_good(self) -> bool:
        """Every test has passed, or has said what it lacks."""
        return self.is_complete and self.failed == 0 and self.passed > 0


def run_suite(machines: Machines, kernel: str, tests: Sequence[str] = TESTS, results: Path = RESULTS) -> SuiteResult:
    """Run the suite on a kernel and write down what came of it.

    Raises:
        LabError: the guest could not be prepared.
        GuestLostError: it ended, or was silent for too long.
    """
    spec = MachineSpec("suite", kernel, _MEMORY_MIB, _CPUS, 0, _DISK_MIB)
    with machines.open(spec) as machine:
        done = machine.ask("run", argv=["sh", "-ec", _PREPARE], patience_s=60)
        if done["status"] != 0:
            message = f"the guest cannot be prepared: {done['output']}"
            raise LabError(message)
        started_s = time.monotonic()
        lines, is_complete = _follow(machine, tests)
        duration_s = time.monotonic() - started_s
        release = str(machine.facts["kernel"])
    date = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M")
    result = read_output(lines)._replace(
        kernel=kernel,
        release=release,
        date=date,
        tests=tuple(tests),
        duration_s=round(duration_s, 1),
        is_complete=is_complete,
    )
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result._asdict()) + "\n")
    if not result.is_good:
        log = results.with_name(f"{kernel}.log")
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"the whole output is in {log}")
    return result


def _follow(machine: Machine, tests: Sequence[str]) -> tuple[list[str], bool]:
    """Start pytest and listen until it ends; its lines, and whether it came to its own end."""
    argv = ["/usr/bin/python3", "-m", "pytest", "-v", "-rfEs", "-p", "no:cacheprovider"]
    argv += ["-o", f"timeout={_TEST_LIMIT_S}", "--color=no", *tests]
    environment = {
        "PYTHONPATH": f"{HOME}/src:{HOME}/site",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/sbin:/usr/bin",
        "HOME": "/tmp",
        "COLUMNS": "200",
    }
    machine.ask("start", name="suite", argv=argv, env=environment, cwd=HOME)
    lines: list[str] = []
    started_s = told_s = time.monotonic()
    while (now_s := time.monotonic()) - started_s < _LIMIT_S:
        if now_s - told_s > _PROGRESS_S:
            told_s = now_s
            say(f"{count_done(lines)} tests done; {lines[-1] if lines else 'nothing said yet'}")
        heard = machine.hear(1.0)
        if heard is None:
            continue
        message = heard.message
        if message["event"] == "line":
            lines.append(str(message["text"]))
        elif message["event"] == "ended" and message["name"] == "suite":
            return lines, True
    return lines, False


def count_done(lines: Sequence[str]) -> int:
    """How many tests have said how they ended; ``lines`` are those of ``pytest -v``."""
    return sum(re.search(r"::.* (PASSED|FAILED|SKIPPED|ERROR)", line) is not None for line in lines)


def read_output(lines: Sequence[str]) -> SuiteResult:
    """The figures of pytest's summary; kernel, date and time are not in it."""
    summary = next(
        (line for line in reversed(lines) if re.search(r"\b(passed|failed|error|skipped)\b.* in ", line)), ""
    )

    def count(*words: str) -> int:
        return sum(int(number) for number in re.findall(rf"(\d+) (?:{'|'.join(words)})\b", summary))

    failures = tuple(line for line in lines if line.startswith(("FAILED ", "ERROR ")))
    skips = tuple(line for line in lines if line.startswith("SKIPPED ["))
    return SuiteResult(
        kernel="",
        release="",
        date="",
        tests=(),
        passed=count("passed"),
        failed=count("failed", "errors?"),
        skipped=count("skipped"),
        duration_s=0.0,
        failures=failures,
        skips=skips,
        is_complete=bool(summary),
    )
