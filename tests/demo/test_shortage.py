"""The main act for real: the watcher on its defaults, a contained shortage, and a victim that cannot die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.demo import group as groups
from oomreaper.demo import shortage
from oomreaper.demo.acts import ExitTrap, SkippedError
from oomreaper.errors import KernelError
from tests.demo.playing import MIB, SHORTER, SIZE_BYTES, WHOLE, interrupt, play, sandboxed
from tests.interpreters import NOBODY, SOURCE, find_source_for_everybody
from tests.victims import processes
from tests.victims.cgroups import groups_named
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYS = {
    "begin": {"act", "at_ms", "pid", "title"},
    "cast": {"act", "at_ms", "group", "limit_bytes", "idle_pids", "watcher_pid"},
    "usage": {"act", "at_ms", "used_bytes"},
    "record": {"act", "at_ms", "record"},
    "watched": {"act", "limit_bytes", "peak_bytes", "left_bytes", "state", "wchan", "idle_alive", "is_shown"},
    "released": {"act", "at_ms", "ended_after_ms"},
}
NAME = "oomreaper-demo-"
# Enters a group as root, becomes an ordinary user, and goes on as the rest of the command line.
_ENTER = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.execv(sys.argv[2], sys.argv[2:])
"""
# What of a run is not Python's own, by the names of the modules.
_FOREIGN = """
import io, sys
sys.path.append({source!r})
sys.stdout = io.TextIOWrapper(io.BytesIO())
from oomreaper.faces import cli
from oomreaper.watch import start
status = cli.main(["run", "--print-plan", "--config", "", "--within", "/some", "--events", "/some/where"])
names = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{"__main__"}}
print(status, sorted(names), file=sys.__stdout__)
"""


def leftovers(name: str = NAME) -> list[str]:
    """Groups and folders of any demo, or of the one of that name, of which nothing should be left."""
    folders = Path(tempfile.gettempdir()).glob(f"{name}*")
    return [*map(str, groups_named(name)), *map(str, folders)]


def own_leftovers() -> list[str]:
    """What an act that was played in this process has left."""
    return leftovers(f"{NAME}{os.getpid()}-")


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """What others have left before is not held against the test."""
    before = leftovers()
    yield
    assert processes.wait_until(lambda: set(leftovers()) <= set(before), 5.0), leftovers()


def assert_watched(records: list[dict[str, Any]]) -> None:
    """The watcher noticed, chose the hog, killed it and got its memory back, while the hog could not die."""
    assert [record["event"] for record in records if record["event"] not in {"usage", "record"}] == [
        "begin",
        "cast",
        "watched",
        "released",
    ]
    told = [record["record"] for record in records if record["event"] == "record"]
    assert [told[0]["event"], told[-1]["event"]] == ["warning", "settled"]
    hog = records[0]["pid"]
    assert {record["pid"] for record in told if record["event"] in {"announce", "killed", "settled"}} == {hog}
    assert [record["signal"] for record in told if record["event"] == "killed"][-1] == "SIGKILL"
    settled, verdict = told[-1], next(record for record in records if record["event"] == "watched")
    assert (settled["outcome"], settled["still_dying"]) == ("reaped", True)
    assert (verdict["state"], verdict["idle_alive"], verdict["is_shown"]) == ("t", 2, True)
    assert verdict["peak_bytes"] >= verdict["limit_bytes"] * 0.9
    assert verdict["left_bytes"] <= verdict["peak_bytes"] / 2
    assert records[-1]["ended_after_ms"] < 5000


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace")
def test_the_whole_main_job(orphans: Callable[[], list[str]]) -> None:
    """On its defaults the watcher notices, chooses, kills and reaps who cannot die; nobody else is touched or left."""
    played = play("--json", command=WHOLE)

    assert (played.status, played.errors) == (0, "")
    records = played.of_act("watch")
    assert_watched(records)
    assert [(record["event"], set(record) - {"event"}) for record in records] == [
        (record["event"], KEYS[record["event"]]) for record in records
    ]
    for event in ("usage", "record"):
        times = [record["at_ms"] for record in records if record["event"] == event]
        assert times == sorted(times)
    name = next(record["group"] for record in records if record["event"] == "cast").rpartition("/")[2]
    assert name.startswith(NAME)
    assert (orphans(), leftovers(name)) == ([], [])


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace")
def test_a_narrow_ascii_screen_without_colour() -> None:
    """At 40 columns every line but the records fits; what was done, the chart and the record are there."""
    played = play(command=WHOLE, COLUMNS="40", PYTHONIOENCODING="ascii", NO_COLOR="1", TERM="xterm-256color")

    assert played.status == 0
    assert played.output.isascii()
    assert "\x1b" not in played.output
    act = played.output.split("\n\n")[1]
    assert max(len(line) for line in act.splitlines() if not line.startswith("{")) <= 40
    assert "SIGKILL to " in act
    assert re.search(r"noticed \d\.\d s", act)
    assert '"outcome": "reaped"' in act
    assert "still cannot die: state t (stopped by its tracer); nobody else was touched." in " ".join(act.split())


# -- who may, and who may not --------------------------------------------------------------------------------


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace", "python_for_everybody")
def test_an_ordinary_user_with_a_group_of_his_own_sees_it() -> None:
    """Where a memory group is delegated to him he needs no right of root; a file of his own changes no default."""
    with own_cgroup("memory") as directory, tempfile.TemporaryDirectory(prefix="oomreaper-test-") as folder:
        for path in (directory, *(directory / name for name in ("cgroup.procs", "tasks"))):
            os.chown(path, NOBODY, NOBODY)
        Path(folder).chmod(0o755)
        settings = Path(folder) / "oomreaper.toml"
        settings.write_text("this is no TOML", encoding="ascii")
        settings.chmod(0o644)
        enter = (sys.executable, "-c", _ENTER, str(directory))
        played = play("--json", command=WHOLE, prefix=enter, as_everybody=True, XDG_CONFIG_HOME=folder)

        assert (played.status, played.errors) == (0, "")
        assert_watched(played.of_act("watch"))
        assert processes.wait_until(lambda: not (directory / "cgroup.procs").read_text().split(), 5.0)
        assert [path for path in directory.iterdir() if path.is_dir()] == []


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace", "python_for_everybody")
def test_without_a_group_it_is_skipped_and_the_rest_is_shown() -> None:
    """An ordinary user is told what was refused and what to do, and sees the act that needs no right."""
    played = play("--json", command=WHOLE, user=NOBODY)

    assert (played.status, played.errors) == (0, "")
    (skipped,) = played.of_act("watch")
    assert skipped["event"] == "skipped"
    assert "a control group of the demo's own was refused: E" in skipped["reason"]
    assert "sudo oomreaper demo" in skipped["reason"]
    assert [record["is_shown"] for record in played.of_act("exit") if record["event"] == "verdict"] == [True]


@pytest.mark.needs("root", "seccomp", "ptrace", "userfaultfd")
def test_without_process_mrelease_it_says_so() -> None:
    """On a kernel without the call the act is skipped with the call's name and answer, and the status is not 0."""
    played = play("--json", command=WHOLE, prefix=sandboxed("process_mrelease=ENOSYS"))

    (skipped,) = played.of_act("watch")
    assert "process_mrelease(2) answers ENOSYS" in skipped["reason"]
    assert played.status == 3


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "seccomp")
def test_without_ptrace_nothing_is_left() -> None:
    """When the hog cannot be held the act is skipped by the tracer's reason, and its group is removed."""
    played = play("--json", command=WHOLE, prefix=sandboxed("ptrace=EPERM"))

    (skipped,) = played.of_act("watch")
    assert "PTRACE_SEIZE" in skipped["reason"]


def test_too_small_a_group_is_skipped() -> None:
    """Where there is no room for a shortage that can be watched, nothing is made, and it says what it takes."""
    with pytest.raises(SkippedError, match="takes 48 MiB"):
        shortage.Shortage().perform(47 * MIB, Silence())


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")
def test_a_path_that_no_socket_can_have_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long TMPDIR is named, before anything is made."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 90)

    with pytest.raises(SkippedError, match="TMPDIR"):
        shortage.Shortage().perform(SIZE_BYTES, Silence())


# -- not passed off as shown ---------------------------------------------------------------------------------


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")
def test_a_hog_that_can_die_is_not_passed_off_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the trap does not hold, the hog goes with its memory, and the act is judged not shown."""
    monkeypatch.setattr(ExitTrap, "attach", lambda *_: None)
    monkeypatch.setattr(ExitTrap, "open", lambda _: None)

    watched = shortage.Shortage().perform(SIZE_BYTES, Silence())

    assert watched.state is None
    assert not watched.is_shown
    assert own_leftovers() == []


@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace")
def test_a_watcher_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no machine's fault, so it is not skipped: the error has the watcher's own words."""
    choose_place = groups.choose_place

    def choose_wrongly(*arguments: Any) -> groups.MemoryGroup:
        place = choose_place(*arguments)
        place.scope += "-that-is-not-there"
        return place

    monkeypatch.setattr(groups, "choose_place", choose_wrongly)

    with pytest.raises(KernelError, match=r"the watcher of the demo ended with exit status 3: .* cannot be watched"):
        shortage.Shortage().perform(SIZE_BYTES, Silence())

    assert own_leftovers() == []


class Silence:
    """A listener that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


# -- interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("event", ["size", "cast", "record", "released"])
def test_an_interrupted_demo_leaves_nothing(event: str, number: int, orphans: Callable[[], list[str]]) -> None:
    """In whatever step it is interrupted, its processes, its group and its socket have gone when it ends."""
    status = interrupt(number, event, None if event == "size" else "watch", command=WHOLE)

    assert orphans() == []
    assert status == 128 + number


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "ptrace")
@pytest.mark.parametrize("event", ["cast", "record", "watched"])
def test_a_killed_demo_leaves_nothing(event: str, orphans: Callable[[], list[str]]) -> None:
    """Even after SIGKILL, the watcher and all others end by themselves at once, and the group is removed after them."""
    status = interrupt(signal.SIGKILL, event, "watch", command=WHOLE)

    def are_all_dead() -> bool:
        return all("'Z'" in orphan for orphan in orphans())

    assert processes.wait_until(are_all_dead, 5.0), orphans()
    assert status == -signal.SIGKILL


# -- what it stands on ---------------------------------------------------------------------------------------


def test_the_watcher_on_its_defaults_needs_nothing_but_python() -> None:
    """``oomreaper run`` without a file, and the watcher that it becomes, import the standard library and us only."""
    script = _FOREIGN.format(source=str(SOURCE))
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert (done.stdout, done.stderr) == ("0 ['oomreaper']\n", "")


def test_the_defaults_are_used_whatever_file_there_is(tmp_path: Path) -> None:
    """With an empty name for the file the demo's watcher reads none, not even one that the user has."""
    (tmp_path / "oomreaper.toml").write_text("this is no TOML")
    command = [sys.executable, "-m", "oomreaper", "run", "--print-plan", "--config", "", "--within", "/some"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": find_source_for_everybody()}
    environment |= {"XDG_CONFIG_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, check=False, timeout=30, env=environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"this is no TOML" not in done.stdout


def test_the_shorter_demo_of_the_tests_is_the_whole_without_the_main_act() -> None:
    """What other tests leave out is this act and nothing else."""
    from oomreaper.demo import show

    assert show.ACTS[0] is shortage.Shortage
    assert "show.ACTS = show.ACTS[1:]" in SHORTER[1]
