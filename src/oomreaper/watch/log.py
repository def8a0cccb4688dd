"""Lines for people, on stderr: what the journal shows.

What it knows: how a record reads in words, and how to write without ever waiting for whoever reads. What it refuses to
know: when something is worth a line.

How a line is written without waiting depends on what stderr is, and the descriptor's own flags are not touched: they
belong to everybody who has it open, the shell that started us among them.

- a socket (the journal): ``send`` with MSG_DONTWAIT.
- a pipe or a terminal: opened once more through /proc/self/fd with O_NONBLOCK, which is a flag of that opening alone.
  Where that is refused: ``poll`` first, and no more than PIPE_BUF bytes, which a pipe that polls as writable takes
  whole. Another writer on the same pipe could take the room in between; nothing else can be done about it.
- a regular file: ``pwritev2`` with RWF_NOWAIT, which most file systems refuse (EOPNOTSUPP; ext4 and tmpfs do). Then a
  plain write: it goes to the page cache, and can wait for a disk only when there are too many unwritten pages. To lose
  every line for that is worse; who runs a watcher for good gives it a journal.

What is not taken at once is kept, up to 16 KiB, and tried again before the next line and at ``flush``. What does not
fit is counted, and the count is said as soon as a line gets through; so is what a full disk or a closed stderr refused.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import TYPE_CHECKING

from oomreaper.model.outcome import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

# The levels of syslog(3) that are used; <N> before a line tells the journal.
ERROR = 3
WARNING = 4
NOTICE = 5
INFO = 6

# include/uapi/linux/limits.h; a write of that many bytes to a pipe is whole or not at all.
_PIPE_BUF = 4096
# About a hundred lines: a whole incident, told while nobody reads.
_PENDING_LIMIT_BYTES = 16 * 1024
_COMMAND_LINE_CHARS = 300
_MIB = 1 << 20
_LEVEL_BY_EVENT = {"announce": WARNING, "killed": NOTICE, "settled": NOTICE, "warning": WARNING, "skipped": NOTICE}


class Log:
    """Writes lines to ``fd``. Nothing here waits or raises.

    Args:
        fd: Where to; kept open by the caller.
        journal_stream: ``$JOURNAL_STREAM``: the device and inode of the journal's stream, to know it by.
    """

    def __init__(self, fd: int, journal_stream: str | None = None) -> None:
        self._fd = fd
        self._own: int | None = None  # our own opening of the same pipe or terminal
        self._socket: socket.socket | None = None
        self._is_file = self._has_nowait = False
        self._needs_poll = False
        self._pending = bytearray()
        self._lost = 0  # since the last time it was said
        self.lost_lines = 0
        self.is_journal = False
        try:
            found = os.fstat(fd)
        except OSError:
            return
        self.is_journal = journal_stream == f"{found.st_dev}:{found.st_ino}"
        if stat.S_ISSOCK(found.st_mode):
            self._socket = _duplicate_socket(fd)
        elif stat.S_ISREG(found.st_mode):
            self._is_file = self._has_nowait = True
        else:
            self._own = _open_again(fd)
            self._needs_poll = self._own is None

    def close(self) -> None:
        """Let go of what was opened; the descriptor itself is the caller's."""
        self.flush()
        if self._own is not None:
            os.close(self._own)
            self._own = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def write(self, text: str, level: int = INFO) -> None:
        """One line; control characters in ``text`` are escaped, so that it stays one."""
        prefix = f"<{level}>" if self.is_journal else ""
        line = _line(prefix + _visible(text))
        if self._lost:
            self._put(_line(f"{f'<{WARNING}>' if self.is_journal else ''}… {self._lost} lines lost"), is_notice=True)
        self._put(line)

    def record(self, record: Mapping[str, object]) -> None:
        """The line of a record."""
        self.write(format_line(record), _LEVEL_BY_EVENT.get(str(record.get("event")), INFO))

    def flush(self) -> None:
        """Try again what was not taken."""
        while self._pending:
            taken = self._write(bytes(self._pending[:_PIPE_BUF]))
            if taken is None:
                self._lost += self._pending.count(b"\n")
                self.lost_lines += self._pending.count(b"\n")
                self._pending.clear()
            if not taken:
                return
            del self._pending[:taken]

    def _put(self, line: bytes, *, is_notice: bool = False) -> None:
        self.flush()
        taken: int | None = 0
        if not self._pending:
            taken = self._write(line)
        if taken is not None and taken < len(line):
            rest = line[taken:]
            # The rest of a line that was begun always fits: nothing else was waiting then.
            if len(self._pending) + len(rest) > _PENDING_LIMIT_BYTES:
                taken = None
            else:
                self._pending += rest
        if is_notice:
            if taken is not None:
                self._lost = 0
        elif taken is None:
            self._lost += 1
            self.lost_lines += 1

    def _write(self, content: bytes) -> int | None:
        """How much was taken; None when nothing ever will be (closed, full disk)."""
        try:
            if self._socket is not None:
                return self._socket.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._is_file:
                return self._write_to_file(content)
            if self._needs_poll and not _is_writable(self._fd):
                return 0
            return os.write(self._fd if self._own is None else self._own, content)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # ENOBUFS, ENOMEM: the kernel has no memory for it now. Others: EPIPE, EBADF, ENOSPC, EIO.
            return 0 if error.errno in (errno.ENOBUFS, errno.ENOMEM) else None

    def _write_to_file(self, content: bytes) -> int:
        if self._has_nowait:
            try:
                return os.pwritev(self._fd, [content], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EAGAIN):
                    raise
                # EAGAIN: this one page would have to be waited for; the next line tries again.
                self._has_nowait = error.errno == errno.EAGAIN
        return os.write(self._fd, content)


def format_line(record: Mapping[str, object]) -> str:
    """A record in words, one line. Takes also what another version wrote: what is missing is left out."""
    event = record.get("event")
    who = _who(record)
    match event:
        case "announce":
            verb = "kill" if record.get("signal") in (None, "SIGKILL") else f"ask to end ({record.get('signal')})"
            parts = [f"{verb}: {who}: {_mib(record.get('gain_bytes'))} to come back"]
            if record.get("reason"):
                parts.append(f"because {record['reason']}" + _of_rule(record))
            if isinstance(why := record.get("why"), list) and why:
                parts.append("chosen: " + ", ".join(str(reason) for reason in why))
            if isinstance(count := record.get("member_count"), int) and count > 1:
                parts.append(
                    f"with {count - 1} others of its {record.get('unit')} {record.get('unit_key') or ''}".rstrip()
                )
            if record.get("cmdline"):
                parts.append(f'command line "{str(record["cmdline"])[:_COMMAND_LINE_CHARS]}"')
            return "; ".join(parts)
        case "killed":
            return f"{record.get('signal')} sent: {who}"
        case "settled":
            return _format_settled(record)
        case "warning":
            return f"warning: {record.get('text')}{_of_scope(record)}"
        case "skipped":
            about = f" ({who})" if "pid" in record else ""
            return f"nothing done: {record.get('text')}{about}{_of_scope(record)}"
        case _:
            return f"{event}: {record.get('text', '')}"


def _format_settled(record: Mapping[str, object]) -> str:
    freed, held, elapsed = record.get("freed_bytes"), record.get("anon_before_bytes"), record.get("elapsed_ms")
    line = f"settled: {record.get('outcome')} {record.get('pid')} ({record.get('comm')})"
    if isinstance(freed, int) and isinstance(held, int):
        line += f" {freed // _MIB} of {_mib(held)} back"
    if isinstance(elapsed, int | float):
        line += f" in {elapsed:.0f} ms"
    sharers = record.get("sharers")
    if isinstance(sharers, list) and sharers:
        line += f", with {record.get('sharer_count', len(sharers))} that shared its memory"
    if record.get("still_dying"):
        line += "; it has not gone yet"
    return f"{line}: {record['reason']}" if record.get("reason") else line


def _who(record: Mapping[str, object]) -> str:
    uid = record.get("uid")
    return f"{record.get('pid')} ({record.get('comm')})" + ("" if uid is None else f" uid {uid}")


def _of_rule(record: Mapping[str, object]) -> str:
    scope = record.get("scope")
    where = "" if scope in (None, "machine") else f" in {scope}"
    return f" (rule {record.get('rule')}{where})"


def _of_scope(record: Mapping[str, object]) -> str:
    scope = record.get("scope")
    return "" if scope in (None, "machine") else f" (in {scope})"


def _mib(value: object) -> str:
    return f"{value // _MIB} MiB" if isinstance(value, int) else "unknown memory"


def _visible(text: str) -> str:
    """Records are printable already; what comes from elsewhere is made so here."""
    return text if text.isprintable() else printable(text.encode("utf-8", "surrogateescape"))


def _line(text: str) -> bytes:
    """One line that fits a pipe whole; a longer one is cut, between two characters."""
    content = text.encode("utf-8", "replace")
    if len(content) >= _PIPE_BUF:
        content = content[: _PIPE_BUF - 8].decode("utf-8", "ignore").encode() + "…".encode()
    return content + b"\n"


def _duplicate_socket(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


def _open_again(fd: int) -> int | None:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))
