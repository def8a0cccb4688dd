"""The programs of the guest, as far as a host may run them: small, bounded by what they are told, ended by us."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.observer import Observer
from lab.scenario import Program, load_scenario, names
from lab.seam import Heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SOURCES = Path(__file__).parents[2] / "lab" / "guest"
# The bound of each in the tests: none takes more than 16 MiB, and none lives longer than this.
_BOUND_S = 20
_LIMIT_S = 10.0

pytestmark = pytest.mark.needs("cc")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled as for an image, with every warning an error."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("workload", "probe"):
        command = ["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", str(folder / name)]
        subprocess.run([*command, str(_SOURCES / f"{name}.c")], check=True)
    return folder


@pytest.fixture
def start(programs: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a workload; it is killed at the end, with all of its session."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*words: str, name: str = "hog") -> subprocess.Popen[bytes]:
        command = [str(programs / "workload"), *words, "--bound", str(_BOUND_S)]
        env = {**os.environ, "LAB_BOUNDED": "1", "LAB_NAME": name}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True))
        return started[-1]

    yield start_one
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _await_line(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdout is not None
    said, deadline_s = b"", time.monotonic() + _LIMIT_S
    while text not in said:
        left_s = deadline_s - time.monotonic()
        assert left_s > 0, said
        if select.select([process.stdout], [], [], left_s)[0]:
            chunk = os.read(process.stdout.fileno(), 4096)
            assert chunk, said
            said += chunk


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def test_a_workload_does_not_run_on_a_machine_that_is_no_guest(programs: Path) -> None:
    """It would take all of its memory: exit status 3, and a sentence."""
    env = {key: value for key, value in os.environ.items() if key != "LAB_BOUNDED"}
    done = subprocess.run([str(programs / "workload"), "leak"], env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "no guest of the lab" in done.stderr


def test_a_leak_stops_at_its_limit(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """It holds what it was told to, under the actor's name."""
    process = start("leak", "--limit-mib", "8", "--mib-per-s", "200")
    _await_line(process, b"full")
    status = _status(process.pid)

    assert status["Name"] == "hog"
    assert 8 * 1024 <= int(status["RssAnon"].split()[0]) < 10 * 1024


def test_a_leak_is_as_fast_as_it_is_told(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """8 MiB at 20 a second take 0.4 s, and not less."""
    began_s = time.monotonic()
    process = start("leak", "--limit-mib", "8", "--mib-per-s", "20")
    _await_line(process, b"full")

    assert time.monotonic() - began_s >= 0.39


def test_shared_memory_is_shared(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """RssShmem, which no reaper frees."""
    process = start("leak-shared", "--limit-mib", "4")
    _await_line(process, b"full")

    assert int(_status(process.pid)["RssShmem"].split()[0]) >= 4 * 1024


def test_a_filler_fills_its_file(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """And holds next to nothing itself."""
    process = start("fill", "--path", str(tmp_path / "filler"), "--limit-mib", "4")
    _await_line(process, b"full")

    assert (tmp_path / "filler").stat().st_size == 4 << 20
    assert int(_status(process.pid)["RssAnon"].split()[0]) < 2048


def test_a_hog_that_ignores_sigterm_stays(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """It handles the signal, and is still there; the usual one goes."""
    stubborn, usual = start("leak", "--limit-mib", "1", "--ignores-term"), start("leak", "--limit-mib", "1")
    for process in (stubborn, usual):
        _await_line(process, b"full")
        process.send_signal(signal.SIGTERM)

    assert usual.wait(_LIMIT_S) == -signal.SIGTERM
    assert int(_status(stubborn.pid)["SigCgt"], 16) & 1 << signal.SIGTERM - 1
    assert stubborn.poll() is None


def test_a_leak_can_stop_at_a_share_of_the_machine(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """At once, where no more than all of it is available."""
    process = start("leak", "--until-percent", "100")
    _await_line(process, b"full")

    assert int(_status(process.pid)["RssAnon"].split()[0]) < 2048


def test_a_family_offers_its_tabs(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Each under its name with its adjustment; the parent with none."""
    process = start(
        "family", "--mib", "1", "--count", "2", "--adj", "300", "--mib-per-s", "1", "--limit-mib", "2", name="browser"
    )
    _await_line(process, b"ready")

    def looks() -> list[tuple[str, str]]:
        paths = [Path(f"/proc/{pid}") for pid in _children(process.pid)]
        return sorted(
            ((path / "comm").read_text().strip(), (path / "oom_score_adj").read_text().strip()) for path in paths
        )

    wanted = [("leaktab", "300"), ("tab", "300"), ("tab", "300")]
    deadline_s = time.monotonic() + _LIMIT_S
    while looks() != wanted and time.monotonic() < deadline_s:
        time.sleep(0.01)  # no event tells that a child has taken its name
    assert looks() == wanted
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text(encoding="ascii").strip() == "0"


def test_a_bomb_makes_no_more_than_it_is_told(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Of all that were ever made; so the machine is left with pids."""
    process = start("bomb", "--mib", "1", "--every-ms", "1", "--count", "6", name="bomb")
    _await_line(process, b"ready")

    def family(pid: int) -> list[int]:
        return [pid, *(each for child in _children(pid) for each in family(child))]

    deadline_s = time.monotonic() + _LIMIT_S
    while len(family(process.pid)) < 7 and time.monotonic() < deadline_s:
        time.sleep(0.01)  # no event tells of a grandchild
    time.sleep(0.2)  # that nothing more comes is seen by waiting only
    assert len(family(process.pid)) == 7


@pytest.mark.parametrize("name", names())
def test_every_scenarios_workload_is_understood(name: str, programs: Path, tmp_path: Path) -> None:
    """Commands and options of the files, each ended at once: one that is misspelt ends by itself, with status 2."""
    for actor in load_scenario(name).actors:
        if actor.program is not Program.WORKLOAD:
            continue
        # Of an option that is given twice the last counts: each takes a MiB or two, and lives for 2 s at most.
        limits = ["--limit-mib", "1"] if actor.arguments[0] in ("leak", "leak-shared", "fill", "family") else []
        small = ["--mib", "1", "--count", "1", "--path", str(tmp_path / "filler"), *limits, "--bound", "2"]
        process = subprocess.Popen(
            [str(programs / "workload"), *actor.arguments, *small],
            stdout=subprocess.PIPE,
            env={**os.environ, "LAB_BOUNDED": "1", "LAB_NAME": actor.name},
            start_new_session=True,
        )
        try:
            _await_line(process, b"ready")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_the_probe_beats_and_the_observer_understands_it(programs: Path) -> None:
    """Lines of JSON, every third with memory and pressure; the count moves."""
    scenario = load_scenario("leak_fast")
    observer = Observer(scenario, memory_kib=1 << 20, swap_kib=0)
    process = subprocess.Popen([str(programs / "probe"), "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        for _ in range(30):
            observer.hear(Heard(time.monotonic_ns(), json.loads(process.stdout.readline())))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    looks = [beat for beat in observer.beats if beat.available_kib is not None]

    assert len(observer.beats) == 30
    assert len(looks) == 10
    assert observer.beats[-1].touched >= 10
    assert abs(observer.beats[-1].guest_ns - observer.beats[-1].at_ns) < 10**9
