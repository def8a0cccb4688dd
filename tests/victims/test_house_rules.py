"""The house rules of a run, proved on small runs of their own: each starts pytest in an empty folder.

Two requirements are made up there: ``moon``, which no machine here can offer, and ``spoon``, which this one could.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.victims import processes
from tests.victims.cgroups import groups_named
from tests.victims.processes import wait_until
from tests.victims.program import NAME_PREFIX, PROGRAM_VARIABLE, compiled_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Inner = Callable[..., subprocess.CompletedProcess[str]]

_CONFTEST = """
from tests.conftest import *
from tests.requirements import REQUIREMENTS, Requirement
REQUIREMENTS["moon"] = Requirement(name="moon", find_missing=lambda: "too far")
REQUIREMENTS["spoon"] = Requirement(name="spoon", find_missing=lambda: "none laid", find_obtainable=lambda: True)
"""


def _environment(folder: Path, *, ci: bool) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(folder),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # four times as quick
    }
    return environment | ({"CI": "true"} if ci else {})


def _command(folder: Path, code: str) -> list[str]:
    (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = needs\n", encoding="utf-8")
    (folder / "test_inner.py").write_text(code, encoding="utf-8")
    return [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(folder)]


@pytest.fixture
def inner(tmp_path: Path) -> Inner:
    """Runs pytest on the code given, with or without CI=true."""

    def run(code: str, *, ci: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _command(tmp_path, code),
            check=False,
            capture_output=True,
            text=True,
            env=_environment(tmp_path, ci=ci),
            timeout=60,
        )

    return run


_NEEDS = """
import pytest
@pytest.mark.needs({names})
def test_it(): pass
"""


def test_what_no_machine_here_offers_excuses_a_skip(inner: Inner) -> None:
    """The run passes, CI or not, and prints the reason."""
    done = inner(_NEEDS.format(names="'moon'"))

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "needs moon: too far" in done.stdout


def test_an_excuse_covers_what_is_missing_beside_it(inner: Inner) -> None:
    """With the moon out of reach, laying a spoon would not have made the test run."""
    done = inner(_NEEDS.format(names="'moon', 'spoon'"))

    assert done.returncode == pytest.ExitCode.OK, done.stdout


def test_what_could_have_been_had_fails_a_run_in_ci(inner: Inner) -> None:
    """The summary names the test and the reason."""
    done = inner(_NEEDS.format(names="'spoon'"))

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "skipped without an excuse: test_inner.py::test_it: Skipped: needs spoon: none laid" in done.stdout


def test_what_could_have_been_had_is_only_named_outside_ci(inner: Inner) -> None:
    """At home the run passes, and says what would not."""
    done = inner(_NEEDS.format(names="'spoon'"), ci=False)

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "skips that fail a run with CI=true" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import pytest\ndef test_it(): pytest.skip('not today')\n",
        "import pytest\n@pytest.mark.skip(reason='not today')\ndef test_it(): pass\n",
        "import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_it(): pass\n",
        "import pytest\npytest.skip('not today', allow_module_level=True)\n",
        "import pytest\n@pytest.fixture\ndef it(): pytest.skip('not today')\ndef test_it(it): pass\n",
    ],
    ids=["call", "mark", "condition", "module", "fixture"],
)
def test_a_skip_made_in_another_way_fails_a_run_in_ci(inner: Inner, code: str) -> None:
    """Only the marker skips: any other way hides what is missing."""
    done = inner(code)

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "not today" in done.stdout.partition("house rules")[2]


def test_an_expected_failure_is_no_skip(inner: Inner) -> None:
    """Pytest files both under "skipped"; here only one of them is."""
    done = inner("import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it(): raise ValueError\n")

    assert done.returncode == pytest.ExitCode.OK, done.stdout


def test_a_need_without_a_name_ends_the_run(inner: Inner) -> None:
    """A misspelt need is a usage error, whether or not the machine has the thing."""
    done = inner(_NEEDS.format(names="'fuze'"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs 'fuze', which tests/requirements.py does not know" in done.stderr


def test_the_head_of_a_run_says_what_it_runs_on(inner: Inner) -> None:
    """Kernel, Python, CPUs, what is there, what is missing and why, and whether there is a seed."""
    done = inner("def test_it(): pass\n")
    head = done.stdout.partition("collected")[0]

    assert f"Linux {os.uname().release}" in head
    assert "machine: Python 3." in head
    assert "lacks: moon: too far" in head
    assert "has: " in head
    assert "hypothesis seed: hypothesis is not loaded" in head


_LEAVES_A_CHILD = """
import subprocess
kept = []
def test_it(): kept.append(subprocess.Popen(["sleep", "60"]))
"""

_LEAVES_AN_ORPHAN = """
import subprocess
def test_it(): subprocess.run(["setsid", "--fork", "sleep", "60"], check=True)
"""


@pytest.mark.parametrize("code", [_LEAVES_A_CHILD, _LEAVES_AN_ORPHAN], ids=["child", "orphan"])
def test_a_process_left_behind_is_ended_and_fails_the_run(inner: Inner, code: str) -> None:
    """Also one that has no parent in the run any more: it still carries the run's mark."""
    done = inner(code, ci=False)
    left = done.stdout.partition("left behind, removed now: process ")[2].split()

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert left[1] == "(sleep),"
    assert wait_until(lambda: processes.is_gone(int(left[0]), processes.start_time_ticks(int(left[0]))), 5.0)
    assert "cannot be removed" not in done.stdout


@pytest.mark.needs("cgroup_v1_freezer")
def test_a_cgroup_left_behind_is_removed_and_fails_the_run(inner: Inner) -> None:
    """A frozen one with a process in it included."""
    done = inner(
        "import subprocess\n"
        "from tests.victims.cgroups import own_directory\n"
        "from tests.victims.program import fresh_name\n"
        "kept = []\n"
        "def test_it():\n"
        "    group = own_directory('freezer') / fresh_name()\n"
        "    group.mkdir()\n"
        "    kept.append(subprocess.Popen(['sleep', '60']))\n"
        "    (group / 'cgroup.procs').write_text(str(kept[0].pid))\n"
        "    (group / 'freezer.state').write_text('FROZEN')\n",
        ci=False,
    )

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "left behind, removed now: cgroup /" in done.stdout
    assert "cannot be removed" not in done.stdout


_WAITS_ON_A_STAGE = """
import os, signal
from pathlib import Path
from tests.victims import stage
def test_it():
    with stage.{name}(size_bytes=stage.MIB):
        Path(os.environ["TMPDIR"], "staged").write_text(str(os.getpid()))
        signal.pause()
"""


@pytest.mark.needs("cc", "root", "cgroup_v1_freezer", "loop_ext4", "unshare", "userfaultfd")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["frozen_cgroup_v1", "inode_lock", "mmap_lock_held"])
def test_a_signal_ends_a_run_with_everything_undone(tmp_path: Path, name: str, how: signal.Signals) -> None:
    """SIGTERM as well as Ctrl-C: the run takes its victim down, finds nothing left, and says it was interrupted."""
    command = _command(tmp_path, _WAITS_ON_A_STAGE.format(name=name))
    environment = _environment(tmp_path, ci=False) | {PROGRAM_VARIABLE: str(compiled_program())}
    staged = tmp_path / "staged"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert wait_until(lambda: staged.exists() and bool(staged.read_text()), 30.0)
        run.send_signal(how)
        output, _ = run.communicate(timeout=60)

    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "left behind" not in output
    assert groups_named(f"{NAME_PREFIX}{run.pid}-") == ()
