"""What the tests of a watcher's worst days need besides ``watching``: any stderr, any user, any limit, any beginning.

``launched`` starts ``oomreaper run`` within a group as it is told, and speaks the service manager's side of
``$NOTIFY_SOCKET``, so that a watcher whose log nobody can read says READY all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oomreaper.config.load import load_plan
from oomreaper.watch.plan import encode_plan
from tests.interpreters import SOURCE, find_python_for_everybody, find_source_for_everybody
from tests.real.watching import HOG, LIMIT_SECONDS, Watching

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from oomreaper.model.plan import Plan
    from tests.real.watching import Group, Member

# On its own terms as quick as the defaults, but it kills at once: nobody is asked first.
KILL = """
[[rule]]
name = "kill"
when = ["mem_available < 10%"]
then = ["kill"]
"""


_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        os.chmod(path, 0o666)  # a watcher of another user speaks to it
        self.messages: list[dict[str, str]] = []

    def await_assignment(
        self,
        name: str,
        value: str = "1",
        timeout_s: float = LIMIT_SECONDS,
        *,
        of: subprocess.Popen[bytes] | None = None,
    ) -> dict[str, str]:
        """The next message that says ``name=value``, unless the process ``of`` ends before."""
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0 and (of is None or of.poll() is None):
            if select.select([self._socket], [], [], min(left, 0.2))[0]:
                message = dict(line.split("=", 1) for line in self._socket.recv(1 << 16).decode().splitlines())
                self.messages.append(message)
                if message.get(name) == value:
                    return message
        log = b"" if of is None or of.stderr is None or of.poll() is None else of.stderr.read()
        text = f"it did not say {name}={value}, but {self.messages} {log!r}"
        raise AssertionError(text)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def listen(self, for_s: float) -> None:
        """Take in what is said for so long: a pause in which the watcher does what it does by the second."""
        with contextlib.suppress(AssertionError):
            self.await_assignment("NOBODY", "SAYS THIS", for_s)


class Launched(Watching):
    """A watcher that was launched; ``manager`` hears what it says of itself."""

    def __init__(self, process: subprocess.Popen[bytes], events_path: str, config_path: Path, manager: Manager) -> None:
        super().__init__(process, events_path, config_path)
        self.manager = manager

    def collect(self, timeout_s: float = 0.0) -> None:
        """Take in what has come; of one that has no log to read: the events."""
        if self.process.stderr is not None:
            super().collect(timeout_s)
        elif self._connection is not None and select.select([self._connection], [], [], timeout_s)[0]:
            message = self._connection.recv(1 << 20)
            if message:
                self.events.append(json.loads(message))
            else:
                self.disconnect()


@contextlib.contextmanager
def launched(
    group: Group,
    *arguments: str,
    config: str = "",
    uid: int | None = None,
    before: Sequence[str] = (),
    becomes: int | None = None,
    runs: Sequence[str] = (),
    last: Sequence[str] = (),
    is_awaited: bool = True,
    **options: Any,
) -> Iterator[Launched]:
    """``oomreaper run``, READY unless ``is_awaited`` is False.

    ``before`` is a command that the command line follows; ``becomes`` is the user that it makes of itself. ``runs`` is
    a program to run in the place of the watcher's own, with the same arguments, and ``last`` behind them.
    """
    owner = uid if uid is not None else becomes
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="oomreaper-test-"))
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "run").mkdir()
        path = directory / "oomreaper.toml"
        path.write_text(config, encoding="utf-8")
        if owner is not None:
            os.chown(directory / "run", owner, owner)
        if uid is not None:
            options |= {"user": uid, "group": uid, "extra_groups": []}
        manager = Manager(f"{name}/notify")
        events_path = f"{name}/run/events.sock"
        command = [sys.executable, "-m", "oomreaper", "run", "--within", group.scope, "--events", events_path]
        command += ["--config", str(path)]
        if runs:
            plan = stack.enter_context(sealed(encode_plan(_compile(path, group.scope, events_path))))
            command = [sys.executable, "-I", "-S", *runs, str(SOURCE), str(plan)]
            options["pass_fds"] = (plan,)
        if owner is not None:
            # Our interpreter and its libraries may be closed to that user: the plan is compiled here, and handed over.
            plan = stack.enter_context(sealed(encode_plan(_compile(path, group.scope, events_path))))
            command = watcher_command(plan, python=find_python_for_everybody(), source=find_source_for_everybody())
            options["pass_fds"] = (plan,)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"NOTIFY_SOCKET": f"{name}/notify"} | options.pop("env", {})
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen(
            [*before, *command, *arguments, *last], env=environment, cwd="/", bufsize=0, **options
        )
        watcher = Launched(process, events_path, path, manager)
        try:
            if is_awaited:
                manager.await_assignment("READY", of=process)
                watcher.connect()
            yield watcher
        finally:
            watcher.give_up()
            manager.close()


def _compile(path: Path, within: str, events_path: str) -> Plan:
    plan, _ = load_plan(str(path))
    return plan._replace(within=within, events_path=events_path)


def watcher_command(plan: int, *, python: str | None = None, source: str = str(SOURCE)) -> list[str]:
    """What ``oomreaper run`` becomes, with the descriptor of its plan."""
    program = "import sys; sys.path.append(sys.argv.pop(1)); from oomreaper.watch.start import main; main(sys.argv[1:])"
    return [python or sys.executable, "-I", "-S", "-c", program, source, str(plan)]


@contextlib.contextmanager
def sealed(content: bytes, seals: int = _SEALS) -> Iterator[int]:
    """A memory file that nobody can change any more."""
    descriptor = os.memfd_create("oomreaper-test-plan", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def start_hog_of(group: Group, uid: int, mib: int, *, pause_s: float = 0.002) -> Member:
    """An ordinary user's hog: root moves it into the group, and it becomes what any login shell starts."""
    python = find_python_for_everybody()
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
    hog = "import time\n" + HOG.format(mib=mib, pause=pause_s, stay=LIMIT_SECONDS)
    return group.start(f"os.execvp('setpriv', {[*user, python, '-I', '-S', '-c', hog]!r})")


def workers_of(pid: int) -> list[int]:
    """The reaper workers of a watcher: those of its children that bear the name."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children if _name_of(child) == b"oomreaper/reap\n"]


def _name_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return b""


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
