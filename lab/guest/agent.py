"""The lab's hand inside a guest: it takes commands from the host, starts programs, and tells what becomes of them.

Knows the guest's kernel and processes; nothing of scenarios or killers. Commands and messages are JSON objects, a line
each (``lab/seam.py`` says which), over a serial port: a write to one allocates nothing.

It has to answer when nothing else does: locked in memory, SCHED_FIFO, never the kernel's victim. It waits in one poll
and never for one program: an answer that takes time (``run``) is given when its time has come. What a program says is
passed on line by line; when the host is slower than the programs, their lines are dropped and counted, answers never.

``python3 -I -S agent.py [PORT …]``: the first port is the agent's, the others are only made raw, for whoever writes
there. Pid 1, or whoever else started it, starts it anew should it end.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
import termios
import time
import tty

TYPE_CHECKING = False  # as typing's, whose import costs a guest a tenth of a second
if TYPE_CHECKING:
    from collections.abc import Callable

_PORTS = ("/dev/ttyS1", "/dev/ttyS2")
_GROUPS = "/sys/fs/cgroup"
_CONTROLLERS = "+memory +cpu +pids +io"
_TRACING = "/sys/kernel/tracing"
# What the kernel's tracer is asked for: who was sent a deadly signal, by whom, and the kernel's own killer and reaper.
_TRACED = {"signal/signal_generate": "sig==9||sig==15", "oom/mark_victim": "", "oom/finish_task_reaping": ""}
_MCL_ALL = 1 | 2
# Above the workers of the killer under test (1), so that it is heard whatever they do.
_PRIORITY = 2
# The end of what a program of ``run`` has said, and of a file that is read.
_KEPT_BYTES = 1 << 16
_LINE_CHARACTERS = 2000
# What waits for the host at most before lines of programs are dropped: some seconds of a serial port.
_WAITING_BYTES = 1 << 18
_READ_BYTES = 1 << 16
# The tracer wakes nobody up who waits for less than its buffer's share: it is asked so often instead.
_TRACE_INTERVAL_S = 0.1
_DEFAULT_RUN_S = 30.0
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Child:
    """A program that was started, and what is known of its end."""

    def __init__(self, name: str, pid: int, *, stdin: int, output: int, news: int) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.stdin = stdin
        self.output = output
        self.news = news
        """Ends when it has become the program it was to be; says before why it cannot."""
        self.unread = b""
        self.command: int | None = None
        """The id of the ``run`` that waits for its end."""
        self.starter: int | None = None
        """The id of the ``start`` that waits until it is what it was to be."""
        self.started_ns = time.monotonic_ns()
        self.deadline_ns: int | None = None
        self.is_late = False


class Agent:
    """All that the agent has: its port, its children, its tracer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.poll()
        self._poll.register(port, select.POLLIN)
        self._incoming = b""
        self._outgoing = bytearray()
        self._dropped = 0
        self._by_name: dict[str, Child] = {}
        self._by_descriptor: dict[int, Child] = {}
        self._trace = -1
        self._untold = b""
        self._commands: dict[str, Callable[[dict[str, object]], dict[str, object] | None]] = {
            "hello": self._hello,
            "ping": lambda _: {"monotonic_ns": time.monotonic_ns()},
            "start": self._start,
            "order": self._order,
            "close": self._close,
            "signal": self._signal,
            "run": self._run,
            "write": _write_file,
            "read": _read_file,
            "mkdir": _make_directory,
            "trace": self._switch_trace,
            "usage": lambda command: _read_usage(int(str(command["pid"]))),
            "stats": lambda _: _read_stats(),
        }

    def serve(self) -> None:
        """Until the port is gone, which it never is."""
        self._say({"event": "up"})
        while True:
            interests = select.POLLIN | (select.POLLOUT if self._outgoing else 0)
            self._poll.modify(self._port, interests)
            for descriptor, _ in self._poll.poll(self._timeout_ms()):
                self._attend(descriptor)
            self._end_the_late()
            if self._trace >= 0:
                self._pass_trace_on()
            self._flush()

    def _timeout_ms(self) -> float | None:
        now_ns = time.monotonic_ns()
        waits = [child.deadline_ns - now_ns for child in self._by_name.values() if child.deadline_ns is not None]
        if self._trace >= 0:
            waits.append(int(_TRACE_INTERVAL_S * 1e9))
        return max(0.0, min(waits) / 1e6) if waits else None

    def _attend(self, descriptor: int) -> None:
        if descriptor == self._port:
            self._take_commands()
            return
        child = self._by_descriptor.get(descriptor)
        if child is None:
            return
        if descriptor == child.output:
            self._pass_output_on(child)
        elif descriptor == child.news:
            self._tell_start(child)
        else:
            self._tell_end(child)

    # -- the host ------------------------------------------------------------------------------------------------

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._incoming += os.read(self._port, _READ_BYTES)
        *lines, self._incoming = self._incoming.split(b"\n")
        for line in lines:
            self._obey(line)

    def _obey(self, line: bytes) -> None:
        try:
            command = json.loads(line)
            number, word = command["id"], command["do"]
        except (ValueError, KeyError, TypeError):
            self._say({"event": "noise", "text": line.decode(errors="replace")[:_LINE_CHARACTERS]})
            return
        try:
            found = self._commands[word](command)
        except Exception as error:  # noqa: BLE001 - whatever fails is the answer: the host decides what it means
            self._say({"event": "answer", "id": number, "ok": False, "error": f"{type(error).__name__}: {error}"})
            return
        if found is not None:
            self._say({"event": "answer", "id": number, "ok": True, **found})

    def _say(self, message: dict[str, object]) -> None:
        is_dispensable = message["event"] in {"line", "trace"}
        if is_dispensable and len(self._outgoing) > _WAITING_BYTES:
            self._dropped += 1
            return
        if self._dropped and len(self._outgoing) <= _WAITING_BYTES:
            dropped, self._dropped = self._dropped, 0
            self._say({"event": "dropped", "count": dropped})
        self._outgoing += json.dumps(message).encode() + b"\n"

    def _flush(self) -> None:
        while self._outgoing:
            try:
                del self._outgoing[: os.write(self._port, self._outgoing[:4096])]
            except BlockingIOError:
                return

    # -- programs ------------------------------------------------------------------------------------------------

    def _start(self, command: dict[str, object]) -> None:
        name = str(command["name"])
        if name in self._by_name:
            message = f"{name} runs already"
            raise ValueError(message)
        self._spawn(name, command).starter = int(str(command["id"]))

    def _run(self, command: dict[str, object]) -> None:
        number = int(str(command["id"]))
        child = self._spawn(f"run {number}", command)
        child.command = number
        timeout_s = float(str(command.get("timeout_s", _DEFAULT_RUN_S)))
        child.deadline_ns = child.started_ns + int(timeout_s * 1e9)
        os.close(child.stdin)
        child.stdin = -1

    def _spawn(self, name: str, command: dict[str, object]) -> Child:
        for_child, stdin = os.pipe()
        output, from_child = os.pipe()
        news, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become(command, for_child, from_child, tell)
        for descriptor in (for_child, from_child, tell):
            os.close(descriptor)
        for descriptor in (output, stdin, news):
            os.set_blocking(descriptor, False)
        child = Child(name, pid, stdin=stdin, output=output, news=news)
        self._by_name[name] = child
        for descriptor in (child.pidfd, output, news):
            self._by_descriptor[descriptor] = child
            self._poll.register(descriptor, select.POLLIN)
        return child

    def _order(self, command: dict[str, object]) -> dict[str, object]:
        os.write(self._child(command).stdin, str(command.get("text", "")).encode() + b"\n")
        return {}

    def _close(self, command: dict[str, object]) -> dict[str, object]:
        child = self._child(command)
        if child.stdin >= 0:
            os.close(child.stdin)
            child.stdin = -1
        return {}

    def _signal(self, command: dict[str, object]) -> dict[str, object]:
        signal.pidfd_send_signal(self._child(command).pidfd, int(str(command["signal"])))
        return {}

    def _child(self, command: dict[str, object]) -> Child:
        name = str(command["name"])
        if name not in self._by_name:
            message = f"{name} does not run"
            raise ValueError(message)
        return self._by_name[name]

    def _pass_output_on(self, child: Child) -> None:
        data = _read_some(child.output)
        if data is None:
            return
        if not data:
            self._forget(child.output)
            child.output = -1
        if child.command is not None:
            child.unread = (child.unread + data)[-_KEPT_BYTES:]
            return
        *lines, child.unread = (child.unread + data).split(b"\n")
        if not data and child.unread:
            lines.append(child.unread)
        for line in lines:
            text = line.decode(errors="replace")[:_LINE_CHARACTERS]
            self._say({"event": "line", "name": child.name, "text": text})

    def _tell_start(self, child: Child) -> None:
        reason = _read_some(child.news)
        self._forget(child.news)
        child.news = -1
        if child.starter is None:
            return
        answer: dict[str, object] = {"event": "answer", "id": child.starter, "ok": not reason, "pid": child.pid}
        if reason:
            answer["error"] = reason.decode(errors="replace")
        self._say(answer)

    def _tell_end(self, child: Child) -> None:
        at_ns = time.monotonic_ns()
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        is_exit = result.si_code == os.CLD_EXITED
        if child.news >= 0:
            self._tell_start(child)
        # What it has said before its end is told before its end; its own children may say more.
        while child.output >= 0 and _has_data(child.output):
            self._pass_output_on(child)
        status, number = (result.si_status, None) if is_exit else (None, result.si_status)
        self._forget(child.pidfd)
        if child.stdin >= 0:
            os.close(child.stdin)
        del self._by_name[child.name]
        if child.command is None:
            ended = {"event": "ended", "name": child.name, "pid": child.pid, "at_ns": at_ns}
            self._say({**ended, "status": status, "signal": number})
            return
        if child.output >= 0:
            self._forget(child.output)
        answer: dict[str, object] = {"event": "answer", "id": child.command, "ok": not child.is_late}
        if child.is_late:
            answer["error"] = "it took longer than it may, and was killed"
        answer["status"] = status if number is None else -number
        answer["output"] = child.unread.decode(errors="replace")
        answer["duration_ms"] = (at_ns - child.started_ns) // 1_000_000
        self._say(answer)

    def _end_the_late(self) -> None:
        now_ns = time.monotonic_ns()
        for child in self._by_name.values():
            if child.deadline_ns is not None and now_ns >= child.deadline_ns:
                child.deadline_ns, child.is_late = None, True
                # Not yet waited for, so its number is still that of its session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._by_descriptor[descriptor]
        os.close(descriptor)

    # -- the machine ---------------------------------------------------------------------------------------------

    def _hello(self, _command: dict[str, object]) -> dict[str, object]:
        memory = _read_fields("/proc/meminfo")
        return {
            "kernel": os.uname().release,
            "cpus": len(os.sched_getaffinity(0)),
            "memory_kib": memory["MemTotal:"],
            "swap_kib": memory["SwapTotal:"],
            "monotonic_ns": time.monotonic_ns(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "has": {
                "tracing": os.path.exists(f"{_TRACING}/trace_pipe"),
                "cgroup2": os.path.exists(f"{_GROUPS}/cgroup.controllers"),
                "psi": os.path.exists("/proc/pressure/memory"),
                "swap": memory["SwapTotal:"] > 0,
            },
        }

    def _switch_trace(self, command: dict[str, object]) -> dict[str, object]:
        is_wanted = bool(command["on"])
        if self._trace >= 0:
            os.close(self._trace)
            self._trace = -1
        if is_wanted:
            _write(f"{_TRACING}/trace_clock", "mono")
            _write(f"{_TRACING}/buffer_size_kb", "256")
        for event, wanted in _TRACED.items():
            directory = f"{_TRACING}/events/{event}"
            if not os.path.isdir(directory):
                continue
            if wanted:
                _write(f"{directory}/filter", wanted)
            _write(f"{directory}/enable", "1" if is_wanted else "0")
        if is_wanted:
            self._trace = os.open(f"{_TRACING}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        return {}

    def _pass_trace_on(self) -> None:
        data = _read_some(self._trace)
        if not data:
            return
        *lines, self._untold = (self._untold + data).split(b"\n")
        for line in lines:
            self._say({"event": "trace", "text": line.decode(errors="replace")[:_LINE_CHARACTERS]})


def _become(command: dict[str, object], stdin: int, output: int, tell: int) -> None:
    """In the child: be what the command says. Does not return; what fails is told, and said on its own output."""
    try:
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, int(str(command.get("nice", 0))))
        _write("/proc/self/oom_score_adj", str(command.get("oom_score_adj", 0)))
        if command.get("group"):
            _write(f"{_GROUPS}/{command['group']}/cgroup.procs", "0")
        os.chdir(str(command.get("cwd", "/")))
        if command.get("user"):
            user = int(str(command["user"]))
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        argv = command["argv"]
        added = command.get("env", {})
        assert isinstance(argv, list)
        assert isinstance(added, dict)
        os.execvpe(argv[0], argv, {**os.environ, **added})
    except Exception as error:  # noqa: BLE001 - there is nobody above to raise it to
        reason = f"{type(error).__name__}: {error}\n".encode()
        os.write(tell, reason)
        os.write(2, reason)
    finally:
        # As a shell does for a command that cannot be run.
        os._exit(127)


def _write_file(command: dict[str, object]) -> dict[str, object]:
    if "base64" in command:
        data = base64.b64decode(str(command["base64"]))
        with open(str(command["path"]), "wb") as file:
            file.write(data)
    else:
        _write(str(command["path"]), str(command["text"]))
    return {}


def _read_file(command: dict[str, object]) -> dict[str, object]:
    with open(str(command["path"]), "rb") as file:
        return {"text": file.read()[-_KEPT_BYTES:].decode(errors="replace")}


def _make_directory(command: dict[str, object]) -> dict[str, object]:
    """Below the control groups, with the controllers in each on the way: a group has them from its parent."""
    path = os.path.normpath(str(command["path"]))
    parents = [path]
    while parents[-1] not in {"/", ""}:
        parents.append(os.path.dirname(parents[-1]))
    for parent in reversed(parents[:-1]):
        with contextlib.suppress(FileExistsError):
            os.mkdir(parent)
        if parent != path and (parent == _GROUPS or parent.startswith(f"{_GROUPS}/")):
            # A group with processes of its own takes none; then its children show what they have.
            with contextlib.suppress(OSError):
                _write(f"{parent}/cgroup.subtree_control", _CONTROLLERS)
    return {}


def _read_usage(pid: int) -> dict[str, object]:
    """CPU time and memory of a process and all its descendants; their sums."""
    pids = _family(pid)
    cpu_ms = sum(_cpu_ms(member) for member in pids)
    rolled = [_read_rollup(member) for member in pids]
    rss_kib = [fields["Rss:"] for fields in rolled if fields is not None]
    pss_kib = [fields["Pss:"] for fields in rolled if fields is not None]
    with open(f"/proc/{pid}/comm", "rb") as file:
        comm = file.read().decode(errors="replace").rstrip("\n")
    sums = {"rss_kib": sum(rss_kib) if rss_kib else None, "pss_kib": sum(pss_kib) if pss_kib else None}
    return {"cpu_ms": cpu_ms, "comm": comm, "processes": len(pids), **sums}


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
    return found


def _cpu_ms(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the last parenthesis, since a name may hold any: state is the first field then, utime the twelfth.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) * 1000 // _TICKS_PER_S


def _read_rollup(pid: int) -> dict[str, int] | None:
    try:
        return _read_fields(f"/proc/{pid}/smaps_rollup", skip=1)
    except OSError:
        return None


def _read_stats() -> dict[str, object]:
    memory, events = _read_fields("/proc/meminfo"), _read_fields("/proc/vmstat")
    stalls = {}
    with contextlib.suppress(OSError), open("/proc/pressure/memory", encoding="ascii") as file:
        stalls = {line.split()[0]: int(line.rpartition("total=")[2]) for line in file}
    return {
        "available_kib": memory["MemAvailable:"],
        "swap_free_kib": memory["SwapFree:"],
        "full_us": stalls.get("full"),
        "some_us": stalls.get("some"),
        "oom_kill": events.get("oom_kill"),
        "monotonic_ns": time.monotonic_ns(),
    }


def _read_fields(path: str, *, skip: int = 0) -> dict[str, int]:
    """The number of each "name number …" of a file of /proc."""
    with open(path, "rb") as file:
        lines = file.read().decode(errors="replace").splitlines()[skip:]
    words = [line.split() for line in lines]
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdigit()}


def _read_some(descriptor: int) -> bytes | None:
    """What can be read at once: b"" at the end, None when there is nothing now."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        # The tracer's pipe says so when another reader has it.
        if error.errno == errno.EBUSY:
            return None
        raise


def _has_data(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def open_port(path: str) -> int:
    """A serial port that passes every byte on as it is, at the highest speed.

    The speed is no matter to qemu but for one thing: how long it waits for more bytes before it interrupts the guest.
    """
    port = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(port)
    settings = termios.tcgetattr(port)
    settings[4] = settings[5] = termios.B115200
    termios.tcsetattr(port, termios.TCSANOW, settings)
    return port


def _become_unshakable() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_ALL) != 0:
        raise OSError(ctypes.get_errno(), "mlockall")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    _write("/proc/self/oom_score_adj", "-1000")


def main(paths: list[str]) -> None:
    """Serve the first port; the others are held open, so that they stay as they were set."""
    port, *_others = [open_port(path) for path in paths]
    _become_unshakable()
    Agent(port).serve()


if __name__ == "__main__":
    main(sys.argv[1:] or list(_PORTS))
