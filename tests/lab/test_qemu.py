"""qemu's command line and its end; a stand-in takes qemu's place, so no guest is started here."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import qemu
from lab.packages import LabError
from lab.qemu import Design, Drive, command_of
from tests.victims.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

_FDS = {"agent": 7, "probe": 8, "qmp": 9}
_DESIGN = Design(Path("/k/vmlinuz"), Path("/i/initramfs"), "quiet", 512, 2, ())
# Speaks as much QMP as a start needs; notes its pid, its directory and every command; lives until it is ended.
_STAND_IN = """\
#!{python} -I
import json, os, re, socket, sys, time
words = " ".join(sys.argv)
number = int(re.search(r"id=qmp,fd=(\\d+)", words).group(1))
open({notes!r} + "/pid", "w").write(str(os.getpid()))
open({notes!r} + "/argv", "w").write(json.dumps(sys.argv))
if {fails!r}:
    print("qemu: no such machine", file=sys.stderr)
    sys.exit(1)
qmp = socket.socket(fileno=number)
lines = qmp.makefile("rwb", buffering=0)
lines.write(b'{{"QMP": {{}}}}\\n')
states = ["inmigrate", "inmigrate", "paused"]
for line in lines:
    command = json.loads(line)["execute"]
    with open({notes!r} + "/commands", "a") as file:
        file.write(command + "\\n")
    lines.write(b'{{"event": "SOMETHING"}}\\n')
    if command == "migrate":
        open({notes!r} + "/uri", "w").write(json.loads(line)["arguments"]["uri"])
        answer = {{"return": {{}}}}
    elif command == "query-migrate":
        answer = {{"return": {{"status": "completed"}}}}
    elif command == "query-status":
        answer = {{"return": {{"status": states.pop(0)}}}}
    elif command == "refused":
        answer = {{"error": {{"desc": "not today"}}}}
    else:
        answer = {{"return": {{}}}}
    lines.write(json.dumps(answer).encode() + b"\\n")
# As qemu does: nobody at the monitor is no reason to end.
time.sleep(60)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the stand-in qemu; the directory of its notes."""

    def make(*, fails: bool = False) -> Path:
        path = tmp_path / "qemu"
        path.write_text(_STAND_IN.format(python=sys.executable, notes=str(tmp_path), fails=fails))
        path.chmod(0o755)
        monkeypatch.setattr(qemu, "PROGRAM", str(path))
        return tmp_path

    return make


def _run_directory(notes: Path) -> Path:
    directory = notes / "run"
    directory.mkdir()
    return directory


def test_a_guest_is_bounded_and_talks_through_what_it_inherits() -> None:
    """Its memory, its CPUs, low priority, no window, no network; ports in the order in which the guest numbers them."""
    command = command_of(_DESIGN, _FDS)
    serials = [command[index + 1] for index, word in enumerate(command) if word == "-serial"]

    assert command[:6] == ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10"]
    assert command[command.index("-m") + 1] == "512M"
    assert command[command.index("-smp") + 1] == "2"
    assert {"-nodefaults", "-no-reboot"} <= set(command)
    assert serials == ["file:console", "chardev:agent", "chardev:probe"]
    assert "socket,id=agent,fd=7" in command
    assert "socket,id=probe,fd=8" in command
    assert not {"-nic", "-net", "-netdev"} & set(command)


def test_a_discarded_disk_is_never_written_to() -> None:
    """A run from a saved guest leaves the saved disk as it was; names with commas are names."""
    kept = command_of(_DESIGN._replace(drives=(Drive(Path("/d/a"), "raw", False),)), _FDS)
    discarded = command_of(_DESIGN._replace(drives=(Drive(Path("/d/a,b"), "qcow2", True),)), _FDS)

    assert any(word.startswith("file=/d/a,") and "snapshot=on" not in word for word in kept)
    assert any(word.startswith("file=/d/a,,b,format=qcow2") and word.endswith("snapshot=on") for word in discarded)


def test_a_saved_guest_is_named_safely() -> None:
    """qemu hands the name to a shell: a blank or a quote in it stays part of it."""
    command = command_of(_DESIGN, _FDS, saved=Path("/it's here/memory"))

    assert command[-1] == "exec:zstd -q -d -c '/it'\"'\"'s here/memory'"


def test_too_large_a_guest_is_not_started(stand_in: Callable[..., Path]) -> None:
    """The host's memory is not ours to fill."""
    notes = stand_in()

    with (
        pytest.raises(LabError, match="larger than the lab allows"),
        qemu.running(_DESIGN._replace(memory_mib=4096), _run_directory(notes)),
    ):
        pass
    assert not (notes / "pid").exists()


def test_it_ends_with_its_block(stand_in: Callable[..., Path]) -> None:
    """However the block ends, no qemu is left."""
    notes = stand_in()

    def be_interrupted() -> None:
        with qemu.running(_DESIGN, _run_directory(notes)) as running:
            assert running.process.poll() is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert not Path(f"/proc/{(notes / 'pid').read_text()}").exists()


def test_it_ends_with_its_maker(stand_in: Callable[..., Path]) -> None:
    """A lab that is killed has no chance to end its guests: the kernel ends them."""
    notes = stand_in()
    directory = _run_directory(notes)
    maker = os.fork()
    if maker == 0:
        with qemu.running(_DESIGN, directory):
            os.kill(os.getpid(), 9)
        os._exit(1)
    os.waitpid(maker, 0)
    pid = int((notes / "pid").read_text())
    has_ended = wait_until(lambda: not _is_running(pid), 10)
    if not has_ended:
        os.kill(pid, 9)

    assert has_ended


def test_what_qemu_says_when_it_does_not_start_is_told(stand_in: Callable[..., Path]) -> None:
    """Its own words, not a broken pipe."""
    notes = stand_in(fails=True)

    with pytest.raises(LabError, match="no such machine"), qemu.running(_DESIGN, _run_directory(notes)):
        pass


def test_saving_stops_the_guest_first(stand_in: Callable[..., Path]) -> None:
    """What is saved is one moment: stop, then save, then wait until the file has its name, which it gets when whole."""
    notes = stand_in()
    memory = notes / "memory"
    late = threading.Timer(0.3, memory.touch)
    with qemu.running(_DESIGN, _run_directory(notes)) as running:
        late.start()
        running.save(memory)
        was_whole = memory.exists()
    late.join()
    commands = (notes / "commands").read_text().split()

    assert was_whole
    assert commands[:5] == ["qmp_capabilities", "stop", "migrate-set-parameters", "migrate", "query-migrate"]
    assert (notes / "uri").read_text().endswith(f"&& mv {memory}.partial {memory}")


def test_a_saved_guest_runs_only_when_it_is_loaded(stand_in: Callable[..., Path]) -> None:
    """It is let go after the last of its memory has been read."""
    notes = stand_in()
    with qemu.running(_DESIGN, _run_directory(notes), saved=notes / "memory") as running:
        running.resume()
    commands = (notes / "commands").read_text().split()

    assert commands == ["qmp_capabilities", *["query-status"] * 3, "cont"]
    assert "-incoming" in json.loads((notes / "argv").read_text())


def test_a_refusal_of_the_monitor_is_an_error(stand_in: Callable[..., Path]) -> None:
    """With qemu's own description."""
    notes = stand_in()

    with (
        pytest.raises(LabError, match="qemu refuses refused: not today"),
        qemu.running(_DESIGN, _run_directory(notes)) as running,
    ):
        running.qmp.command("refused")


def _is_running(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
