"""One qemu process: started with everything it shares with us already open, spoken to through QMP, ended for certain.

Knows qemu's command line and its monitor; nothing of what runs inside. Software emulation (TCG) throughout: it works
wherever qemu does, and what is compared is compared on the same machine.

The monitor and the two ports are socket pairs that qemu inherits: no path, no wait for one to appear. qemu is ended by
the kernel when we are (``setpriv --pdeathsig``), whatever ended us.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.packages import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PROGRAM = "qemu-system-x86_64"
# Nobody's guest is larger, and no more run at once (lab/machine.py): the host has work of its own.
LARGEST_MIB = 2048
# Without cx16: qemu 7.2 spoils the flags of `cmpxchg16b %gs:…`, and Debian's 6.12 dies of a double fault within seconds
# of its start (25 November 2026). The kernel has another way for processors that lack it. All kernels get the same.
_PROCESSOR = "max,-cx16"
# How long an orderly end may take before qemu is killed; it has nothing to save.
_END_S = 3.0
_QMP_S = 30.0
# 230 MB take a second; a host that is short of CPU or disk may take long.
_SAVE_S = 120.0
_LOG_END_BYTES = 2000


class Drive(NamedTuple):
    """A disk of the guest. With ``is_discarded`` what is written to it is forgotten at the end, the file stays."""

    path: Path
    format: str
    is_discarded: bool


class Design(NamedTuple):
    """What a qemu is started with."""

    kernel: Path
    initramfs: Path
    command_line: str
    memory_mib: int
    cpus: int
    drives: Sequence[Drive]


class Qemu:
    """A running qemu: its ends of the ports, and its monitor."""

    def __init__(self, process: subprocess.Popen[bytes], agent: socket.socket, probe: socket.socket, qmp: Qmp) -> None:
        self.process = process
        self.agent = agent
        self.probe = probe
        self.qmp = qmp

    def save(self, path: Path) -> None:
        """Stop the guest and write its memory and devices to a file; the guest is of no more use then.

        Raises:
            LabError: qemu could not.
        """
        self.qmp.command("stop")
        # No limit: it is a file and not a network, and nobody waits for the guest meanwhile.
        self.qmp.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        # qemu is done when it has said everything, the file is when zstd has written it: it has its name only then.
        whole, partial = shlex.quote(str(path)), shlex.quote(f"{path}.partial")
        self.qmp.command("migrate", uri=f"exec:zstd -q -1 -o {partial} && mv {partial} {whole}")
        deadline_s = time.monotonic() + _SAVE_S
        status: dict[str, Any] = {}
        while status.get("status") != "completed" or not path.exists():
            status = self.qmp.command("query-migrate")
            if status.get("status") == "failed" or time.monotonic() > deadline_s:
                message = f"qemu could not save the guest: {status.get('error-desc', status)}"
                raise LabError(message)
            time.sleep(0.02)

    def resume(self) -> None:
        """Wait until a saved guest is loaded, and let it run."""
        deadline_s = time.monotonic() + _QMP_S
        while self.qmp.command("query-status").get("status") == "inmigrate":
            if time.monotonic() > deadline_s:
                message = "qemu does not load the saved guest"
                raise LabError(message)
            time.sleep(0.01)
        self.qmp.command("cont")


class Qmp:
    """qemu's monitor: a command, an answer; events are passed over."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_QMP_S)
        self._lines = connection.makefile("rwb")
        self._read()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Say a command; what it returns, or {} for what is no object.

        Raises:
            LabError: qemu refused, or has ended.
        """
        try:
            self._lines.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
            self._lines.flush()
            while True:
                answer = self._read()
                if "error" in answer:
                    message = f"qemu refuses {name}: {answer['error'].get('desc')}"
                    raise LabError(message)
                if "return" in answer:
                    returned = answer["return"]
                    return returned if isinstance(returned, dict) else {}
        except OSError as error:
            message = f"qemu does not answer to {name}: {error}"
            raise LabError(message) from error

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            message = "qemu has ended"
            raise LabError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(design: Design, directory: Path, *, saved: Path | None = None) -> Iterator[Qemu]:
    """A qemu in a directory of its own, ended with the block: from the start of the kernel, or as it was saved.

    ``console`` in the directory gets what the kernel says, ``qemu.log`` what qemu says.

    Raises:
        LabError: qemu does not start; its own words are in the message.
    """
    if design.memory_mib > LARGEST_MIB:
        message = f"a guest of {design.memory_mib} MiB is larger than the lab allows ({LARGEST_MIB} MiB)"
        raise LabError(message)
    log = directory / "qemu.log"
    with contextlib.ExitStack() as stack:
        pairs = {name: socket.socketpair() for name in ("agent", "probe", "qmp")}
        for ours, theirs in pairs.values():
            stack.callback(ours.close)
            stack.callback(theirs.close)
        fds = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
        command = command_of(design, fds, saved=saved)
        process = subprocess.Popen(
            command,
            cwd=directory,
            # qemu's temporary files are those of discarded disks.
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            pass_fds=tuple(fds.values()),
            start_new_session=True,
        )
        stack.callback(_end, process)
        for _, theirs in pairs.values():
            theirs.close()
        try:
            qmp = Qmp(pairs["qmp"][0])
        except (LabError, OSError) as error:
            message = f"qemu does not start: {end_of(log) or error}"
            raise LabError(message) from error
        yield Qemu(process, pairs["agent"][0], pairs["probe"][0], qmp)


def command_of(design: Design, fds: dict[str, int], *, saved: Path | None = None) -> list[str]:
    """The command line. Pure."""
    command = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", PROGRAM]
    command += ["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", _PROCESSOR]
    command += ["-smp", str(design.cpus), "-m", f"{design.memory_mib}M"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control"]
    command += ["-serial", "file:console"]
    for name in ("agent", "probe"):
        command += ["-chardev", f"socket,id={name},fd={fds[name]}", "-serial", f"chardev:{name}"]
    command += ["-kernel", str(design.kernel), "-initrd", str(design.initramfs), "-append", design.command_line]
    for drive in design.drives:
        # Nothing of a guest outlives it but what is saved on purpose: its own flushes may stay in the host's cache.
        file = str(drive.path).replace(",", ",,")
        options = f"file={file},format={drive.format},if=virtio,cache=unsafe,discard=unmap"
        command += ["-drive", options + (",snapshot=on" if drive.is_discarded else "")]
    if saved is not None:
        command += ["-incoming", f"exec:zstd -q -d -c {shlex.quote(str(saved))}"]
    return command


def end_of(path: Path) -> str:
    """The last words of a log, one string; empty when there are none."""
    try:
        return path.read_bytes()[-_LOG_END_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
