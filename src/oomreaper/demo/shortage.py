"""The main act: a real shortage, the real ``oomreaper run`` on its defaults, and a victim that cannot die.

Within a control group of the demo's own (``group``), two idle processes hold a little memory and a hog takes the rest.
The hog ignores SIGTERM, and a debugger stops it in the middle of its exit: whoever kills it gets nothing back. What is
done about that is the watcher's; here it is only looked at: its events, as anybody may read them from its socket, and
what the group holds.

1. Make the group, and everybody in it; whatever this machine refuses, it refuses here.
2. Start the watcher, and wait until it answers.
3. Let the hog take memory, until the watcher says that its victim is settled.
4. Look a while longer: the memory must be back, the hog still there, the idle ones untouched.
5. End the watcher, let the hog go, and see it end.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from oomreaper.demo import group as groups
from oomreaper.demo.acts import ExitTrap, Moment, SkippedError, State, say_refusal
from oomreaper.demo.roles import EVENTS_NAME
from oomreaper.demo.victims import Helper, RoleFailedError, Stage
from oomreaper.errors import KernelError
from oomreaper.linux import cgroup, proc, syscalls

if TYPE_CHECKING:
    from oomreaper.demo.acts import Act
    from oomreaper.demo.group import MemoryGroup

_NS_IN_MS = 1_000_000
_MIB = 1 << 20
# Three interpreters, what the kernel charges ahead for each CPU, and 4 % in which a SIGTERM can be seen.
SMALLEST_BYTES = 48 * _MIB
# Slow enough to be watched, and to be asked before it is killed; a desktop's hog takes as much in a second or two.
_FILL_MS = 2_500
# What each of the idle ones holds: a part of the limit.
_IDLE_PARTS = (16, 10)
# The watcher is ready after 0.2 s (2026-11); a machine under load may take ten times that and more.
_READY_LIMIT_NS = 15_000 * _NS_IN_MS
# Filling takes 2.5 s, the ladder of the defaults gives ten more to who was asked, and a victim's budget is one second.
_SETTLE_LIMIT_NS = 20_000 * _NS_IN_MS
# What is shown before the fill and after the reap, for the eye.
_BEFORE_NS, _AFTER_NS = 200 * _NS_IN_MS, 800 * _NS_IN_MS
_LOOK_EVERY_MS = 5
_END_LIMIT_NS = 5_000 * _NS_IN_MS
_MOST_MESSAGE_BYTES = 1 << 20
# struct sockaddr_un has 108 bytes for a path and its NUL.
_LONGEST_SOCKET_PATH = 107
_QUESTION = b'{"ask":"state"}'
# The hog has four fifths of what the group holds; that at least half of all is back is its memory.
_BACK_PARTS = 2


class WatchListener(Protocol):
    """Who is told what happens in this act; every time is monotonic, and is when it happened, not when it was heard."""

    def on_cast(self, cast: Cast, at_ns: int) -> None:
        """All are there, the watcher watches, and the hog begins to take memory."""

    def on_usage(self, moment: Moment) -> None:
        """The group holds that much."""

    def on_record(self, record: dict[str, object], at_ns: int) -> None:
        """The watcher says so."""

    def on_watched(self, watched: Watched) -> None:
        """Everything has been seen; the hog still stands where it stood."""

    def on_released(self, act: Act, ended_after_ns: int | None, at_ns: int) -> None:
        """The hog was let go, and ended that much later; None: it did not."""


class Cast(NamedTuple):
    """Who is there."""

    act: Shortage
    group: str
    limit_bytes: int
    hog_pid: int
    idle_pids: tuple[int, ...]
    watcher_pid: int


class Watched(NamedTuple):
    """All that is to be known of this act when it was played.

    ``state`` is where the hog stood at the end, before it was let go; None: it had ended. ``settled`` is the watcher's
    own record of it; None: it settled nothing.
    """

    cast: Cast
    begin_ns: int
    moments: list[Moment]
    records: list[dict[str, object]]
    state: State | None
    idle_alive: int

    @property
    def settled(self) -> dict[str, object] | None:
        """What the watcher says of its victim in the end."""
        return self.find("settled")

    def find(self, event: str, **fields: object) -> dict[str, object] | None:
        """The first record of that kind that concerns the hog or nobody."""
        for record in self.records:
            if record.get("event") != event or record.get("pid", self.cast.hog_pid) != self.cast.hog_pid:
                continue
            if all(record.get(name) == value for name, value in fields.items()):
                return record
        return None

    @property
    def peak_bytes(self) -> int:
        """The most that the group held."""
        return max(moment.held_bytes for moment in self.moments)

    @property
    def left_bytes(self) -> int:
        """What it held in the end."""
        return self.moments[-1].held_bytes

    @property
    def has_come_back(self) -> bool:
        """Whether the hog's memory is back, by the watcher's word and by what the gauge saw."""
        is_reaped = self.settled is not None and self.settled.get("outcome") == "reaped"
        return is_reaped and self.left_bytes * _BACK_PARTS <= self.peak_bytes

    @property
    def others_taken(self) -> list[int]:
        """Whom else the watcher chose or signalled."""
        taken = {int(str(record["pid"])) for record in self.records if record.get("event") in ("announce", "killed")}
        return sorted(taken - {self.cast.hog_pid})

    @property
    def is_shown(self) -> bool:
        """Whether the act showed what it is for: back, of one who cannot die, and nobody else was touched."""
        are_all_alive = self.idle_alive == len(self.cast.idle_pids)
        return self.has_come_back and self.state is not None and are_all_alive and not self.others_taken

    @property
    def needs_permission(self) -> bool:
        """Whether other rights would have changed the end; what this act needs is asked for before it begins."""
        return False


class Shortage:
    """The act. ``release`` is how the hog is let go."""

    name = "watch"
    title = "`oomreaper run`, on its defaults, meets a shortage of memory"
    release = ExitTrap.release

    def perform(self, size_bytes: int, listener: WatchListener) -> Watched:
        """Play it, in a group of ``size_bytes``.

        Raises:
            SkippedError: This machine does not permit it.
            KernelError: The watcher did not start, or no process can be had here.
        """
        if size_bytes < SMALLEST_BYTES:
            raise SkippedError(f"a shortage to be watched takes {SMALLEST_BYTES // _MIB} MiB; see --size-mib")
        answer = syscalls.answer_of_mrelease_probe()
        if answer != errno.EBADF:
            name = errno.errorcode.get(answer, str(answer))
            raise SkippedError(
                f"process_mrelease(2) answers {name}: this kernel (before Linux 5.15) or sandbox lets nobody be reaped"
            )
        chronicle = _Chronicle(listener)
        trap = ExitTrap()
        try:
            with Stage(chronicle.on_sample) as stage:
                return self._play(stage, trap, size_bytes, chronicle)
        except RoleFailedError as failure:
            if failure.role == groups.ROLE:
                raise SkippedError(groups.explain(say_refusal(failure))) from failure
            if failure.role == "tracer":
                raise SkippedError(trap.explain(failure)) from failure
            raise SkippedError(say_refusal(failure)) from failure

    def _play(self, stage: Stage, trap: ExitTrap, size_bytes: int, chronicle: _Chronicle) -> Watched:
        listener, moments = chronicle.listener, chronicle.moments
        name = f"oomreaper-demo-{os.getpid()}-{secrets.token_hex(4)}"
        group = _choose_group(name, size_bytes)
        folder = f"{tempfile.gettempdir()}/{name}"
        if len(os.fsencode(f"{folder}/{EVENTS_NAME}")) > _LONGEST_SOCKET_PATH:
            raise SkippedError("the path of TMPDIR is too long to have a socket there: TMPDIR=/tmp oomreaper demo")
        warden = stage.start("warden", group.directory, folder, is_tidy=True)
        stage.expect(warden, "ready")  # from here on somebody removes what is made, whatever becomes of us
        groups.make(group)
        os.mkdir(folder, 0o700)

        hog = _start_member(stage, group, "hog", str(size_bytes), str(_FILL_MS))
        trap.attach(stage, hog)
        idle = [_start_member(stage, group, "idle", str(size_bytes // part)) for part in _IDLE_PARTS]
        for each in idle:
            each.order("fill")
            stage.expect(each, "full")
        watcher = stage.start("watcher", group.scope, f"{folder}/{EVENTS_NAME}", is_tidy=True)
        with _Ear(stage, watcher, f"{folder}/{EVENTS_NAME}") as ear:
            ear.await_answer()
            stage.expect(stage.start("gauge", group.usage_file), "sample")
            idle_pids = tuple(each.pid for each in idle)
            cast = Cast(self, group.scope, size_bytes, hog.pid, idle_pids, watcher.pid)
            begin_ns = time.monotonic_ns()
            listener.on_cast(cast, begin_ns)
            chronicle.has_begun = True
            ear.on_record = listener.on_record
            _let_pass(stage, moments, _BEFORE_NS)
            hog.order("take")
            stage.wait(lambda: ear.has_settled(hog.pid) or watcher.has_ended, time.monotonic_ns() + _SETTLE_LIMIT_NS)
            _let_pass(stage, moments, _AFTER_NS)
            state = None if hog.has_ended else State(hog.read_stat().state, hog.read_wchan())
            alive = sum(not each.has_ended for each in idle)
            watched = Watched(cast, begin_ns, list(moments), list(ear.records), state, alive)
            listener.on_watched(watched)
            watcher.ask_to_end()
        opened_ns = time.monotonic_ns()
        hog.kill()  # where the watcher has not
        trap.open()
        has_ended = stage.wait(lambda: hog.has_ended, opened_ns + _END_LIMIT_NS, look_every_ms=1)
        now_ns = time.monotonic_ns()
        listener.on_released(self, now_ns - opened_ns if has_ended else None, now_ns)
        return watched


class _Chronicle:
    """Keeps what the gauge says; once the act has begun, passes it on, too."""

    def __init__(self, listener: WatchListener) -> None:
        self.listener = listener
        self.moments: list[Moment] = []
        self.has_begun = False

    def on_sample(self, at_ns: int, used_bytes: int) -> None:
        """The gauge said so."""
        self.moments.append(Moment(at_ns, used_bytes))
        if self.has_begun:
            self.listener.on_usage(self.moments[-1])


class _Ear:
    """Listens to the watcher's event socket. ``records`` are those since it answered first."""

    def __init__(self, stage: Stage, watcher: Helper, path: str) -> None:
        self._stage = stage
        self._watcher = watcher
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._is_connected = self._has_answered = False
        self.records: list[dict[str, object]] = []
        self.on_record: WatchRecorder = _say_nothing

    def __enter__(self) -> _Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self._stage.ignore(self._socket.fileno())
        self._socket.close()

    def await_answer(self) -> None:
        """Connect and ask; who answers watches.

        Raises:
            KernelError: It ended before, or is silent for too long.
        """
        limit_ns = time.monotonic_ns() + _READY_LIMIT_NS
        self._stage.wait(self._has_connected, limit_ns, look_every_ms=_LOOK_EVERY_MS)
        self._stage.wait(lambda: self._has_answered or self._watcher.has_ended, limit_ns, look_every_ms=_LOOK_EVERY_MS)
        if not self._has_answered:
            self._stage.catch_up()
            said = next(reversed(self._watcher.said), "it said nothing")
            how = self._watcher.why_ended() if self._watcher.has_ended else "does not answer"
            raise KernelError(f"the watcher of the demo {how}: {said}")

    def has_settled(self, pid: int) -> bool:
        """Whether the watcher has told the end of that victim."""
        return any(record.get("event") == "settled" and record.get("pid") == pid for record in self.records)

    def _has_connected(self) -> bool:
        if not self._is_connected and not self._watcher.has_ended:
            try:
                self._socket.connect(self._path)
                self._socket.send(_QUESTION)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                return False  # it is not there yet
            self._is_connected = True
            self._stage.attend(self._socket.fileno(), self._on_readable)
        return self._is_connected or self._watcher.has_ended

    def _on_readable(self) -> None:
        try:
            message = self._socket.recv(_MOST_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        if not message:
            self._stage.ignore(self._socket.fileno())
            return
        record = json.loads(message)
        if record.get("event") == "state":
            self._has_answered = True
        elif self._has_answered:
            self.records.append(record)
            self.on_record(record, int(record["monotonic_ns"]))


class WatchRecorder(Protocol):
    """Who takes a record, and when it happened."""

    def __call__(self, record: dict[str, object], at_ns: int) -> None:
        """Take it."""


def _say_nothing(record: dict[str, object], at_ns: int) -> None:
    """Before the act begins nobody is told."""


def _choose_group(name: str, limit_bytes: int) -> MemoryGroup:
    root = proc.open_root()
    try:
        memberships = cgroup.parse_memberships(proc.read_file(root, "self/cgroup") or b"")
        return groups.choose_place(groups.find_places(cgroup.read_mounts(root), memberships), name, limit_bytes)
    finally:
        os.close(root)


def _start_member(stage: Stage, group: MemoryGroup, role: str, *arguments: str) -> Helper:
    member = stage.start(role, *arguments)
    stage.expect(member, "made")
    group.add(member.pid)
    return member


def _let_pass(stage: Stage, moments: list[Moment], time_ns: int) -> None:
    """Let time pass until it is known what was held at its end."""
    until_ns = time.monotonic_ns() + time_ns
    if not stage.wait(lambda: bool(moments) and moments[-1].at_ns >= until_ns, until_ns + _END_LIMIT_NS):
        raise KernelError("the demo was given no CPU for seconds: this machine is too busy to show anything; try later")
