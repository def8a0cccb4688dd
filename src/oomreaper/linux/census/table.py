"""Those who are known, and how each of them is read: once through, or in the front through files that are kept.

What it knows: one process at a time. What it refuses to know: whose turn it is. No error of the kernel comes out of it:

| answer | what it means for the process |
|---|---|
| ENOENT, ESRCH | it has gone: dropped (one led by a zombie is looked at again: it may be one thread that has gone) |
| EACCES, EPERM | not ours to see: left out until the next sweep, and counted |
| EMFILE, ENFILE | the smaller half of the front lets go of its files until the next sweep; the largest never do |
| anything else | it keeps its last numbers this time, and is counted |

A member of the front without kept files is read by opening, at 40 us instead of 3 (2026-11).
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, assert_never

from oomreaper.linux import proc
from oomreaper.linux.census import files
from oomreaper.linux.census.entry import GROWTH_STEP_NS, Entry
from oomreaper.linux.census.files import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.linux.census.front import Front
    from oomreaper.model.identity import Identity

_SECOND_NS = 1_000_000_000
# As long as it is shorter than this in the world, all that a process holds is growth.
_YOUNG_NS = 2 * GROWTH_STEP_NS
# A bound for those remembered as just born: a fork bomb makes more, and all of one size.
_REMEMBERED_YOUNG = 1024

# However short the machine is of open files, those who may be chosen next are still read: as many as a decision
# refreshes.
_KEPT_AT_LEAST = 16

_gain_bytes = attrgetter("gain_bytes")


class Table:
    """Every process that was met, by pid. ``kept_limit``: how many may have their files kept."""

    def __init__(
        self, proc_root: int, *, page_bytes: int, ticks_per_second: int, front: Front, kept_limit: int
    ) -> None:
        self._proc_root = proc_root
        self._page_bytes = page_bytes
        self._tick_ns = _SECOND_NS // ticks_per_second
        self._planned_limit = self._kept_limit = kept_limit
        self._now_ns = 0
        self._suspended_ns = 0
        self._is_swap_used = False
        self._has_made_room = False
        self.entries: dict[int, Entry] = {}
        self.front = front
        self.young: deque[Entry] = deque(maxlen=_REMEMBERED_YOUNG)
        self.forgotten: dict[int, Identity] = {}
        """Whose files must not be read."""
        self.refused: set[int] = set()
        """Whose files are not ours to read."""
        self.explained_bytes = 0
        """What the front and those just met have taken, less what they gave back, since this was last set to 0."""
        self.kept = 0
        self.vanished = 0
        self.unread = 0
        self.crowded = 0

    def begin(self, now_ns: int, *, suspended_ns: int, is_swap_used: bool) -> None:
        """All that is read from now on is of ``now_ns``."""
        if self._is_swap_used and not is_swap_used:
            for entry in self.entries.values():
                entry.see_nothing_swapped()
        self._now_ns = now_ns
        self._suspended_ns = suspended_ns
        self._is_swap_used = is_swap_used
        self._has_made_room = False
        while self.young and now_ns - self.young[0].started_ns > _YOUNG_NS:
            self.young.popleft()

    def forgive(self) -> None:
        """Try again what was refused, and keep as many files as planned."""
        self.refused.clear()
        self._kept_limit = self._planned_limit

    def visit(self, pid: int, *, is_electing: bool = False) -> bool:
        """Read whoever holds ``pid``, through one directory; False: to be tried again.

        While an election is on, nobody comes into the front by himself.
        """
        if pid in self.forgotten or pid in self.refused:
            return True
        try:
            directory = files.open_directory(self._proc_root, pid)
        except OSError as error:
            return self._fail(pid, error)
        try:
            self._read_life(pid, directory, is_electing=is_electing)
        except OSError as error:
            return self._fail(pid, error)
        finally:
            files.close_directory(directory)
        return True

    def measure(self, entry: Entry) -> None:
        """Read the statm of a member of the front: one system call, and hardly more as long as nothing changed."""
        kept = entry.files
        if kept is None:
            self.visit(entry.pid)
            return
        now_ns = self._now_ns
        try:
            line = files.read_kept_statm(kept.statm)
        except OSError as error:
            self._fail_kept(entry, error)
            return
        if line == entry.statm_line and entry.is_settled(now_ns):
            return
        before_bytes = entry.taken_bytes
        entry.see_statm(line, self._page_bytes, now_ns)
        entry.statm_line = line
        self.explained_bytes += entry.taken_bytes - before_bytes
        if not entry.resident_bytes:
            self._find_memory(entry)

    def glance(self, entry: Entry) -> None:
        """Read the statm of one outside the front by its pid: the cheapest, 10 us (2026-11)."""
        if entry.is_kernel_thread:
            return
        if entry.thread_id is not None:
            self.visit(entry.pid, is_electing=True)
            return
        try:
            line = files.read_statm_by_pid(self._proc_root, entry.pid)
        except OSError as error:
            self._fail(entry.pid, error)
            return
        entry.see_statm(line, self._page_bytes, self._now_ns)

    def read_details(self, entry: Entry) -> None:
        """Read everything of a member of the front; of another, everything that can be had at once."""
        kept = entry.files
        if kept is None:
            self.visit(entry.pid)
            return
        before_bytes = entry.taken_bytes
        try:
            entry.see_stat(files.read_kept_stat(kept.stat))
            entry.see_oom_score_adj(files.read_kept_oom_score_adj(kept.oom_score_adj))
            entry.see_status(files.read_kept_status(kept.status), self._now_ns)
        except OSError as error:
            self._fail_kept(entry, error)
            return
        self.explained_bytes += entry.taken_bytes - before_bytes
        if entry.is_led_by_zombie and entry.thread_id is None:
            self._find_memory(entry)

    def elect(self, entries: Iterable[Entry]) -> None:
        """Let the largest of ``entries`` be the front, and nobody else."""
        elected = self.front.elect(entries)
        staying = {entry.pid for entry in elected}
        for entry in list(self.front.members.values()):
            if entry.pid not in staying:
                self._dismiss(entry)
        for entry in elected:
            if not entry.is_in_front:
                self.front.admit(entry)
                self.read_details(entry)

    def drop(self, entry: Entry) -> None:
        """Know it no more."""
        if entry.is_in_front:
            self.explained_bytes -= entry.taken_bytes
        self._dismiss(entry)
        del self.entries[entry.pid]

    def note(self, error: OSError) -> Trouble:
        """Count an error that concerns us rather than one process, and make room where it asks for that."""
        trouble = files.tell_trouble(error)
        if trouble is Trouble.CROWDED:
            self.crowded += 1
            self._make_room()
        elif trouble is Trouble.UNREAD:
            self.unread += 1
        return trouble

    def _read_life(self, pid: int, directory: int, *, is_electing: bool) -> None:
        line = files.read_stat_line(directory)
        stat = proc.parse_stat(line)
        entry = self.entries.get(pid)
        if entry is not None and entry.identity != stat.identity:
            self.vanished += 1
            self.drop(entry)
            entry = None
        is_new = entry is None
        if entry is None:
            if files.is_thread(line):
                return
            entry = self._enter(stat, directory)
        entry.see_stat(stat)
        if stat.is_kernel_thread:
            return
        self._let_go(entry)
        before_bytes = entry.taken_bytes
        entry.thread_id = files.find_thread_with_memory(directory) if entry.is_led_by_zombie else None
        entry.see_statm(files.read_statm(directory, entry.thread_id), self._page_bytes, self._now_ns)
        if entry.oom_score_adj is None:
            entry.see_oom_score_adj(files.read_oom_score_adj(directory))
        if self._is_swap_used and not entry.is_in_front:
            entry.see_status(files.read_status(directory, entry.thread_id), self._now_ns)
        if is_electing:
            return
        if not entry.is_in_front and self._is_wanted(entry):
            self.front.admit(entry)
        if entry.is_in_front:
            self._read_more(entry, directory)
        if is_new or entry.is_in_front:
            self.explained_bytes += entry.taken_bytes - before_bytes

    def _enter(self, stat: proc.Stat, directory: int) -> Entry:
        started_ns = stat.starttime * self._tick_ns - self._suspended_ns
        entry = Entry(stat, uid=files.read_euid(directory), started_ns=started_ns, now_ns=self._now_ns)
        self.entries[stat.pid] = entry
        if self._now_ns - started_ns < _YOUNG_NS and not stat.is_kernel_thread:
            self.young.append(entry)
        return entry

    def _is_wanted(self, entry: Entry) -> bool:
        if self.front.wants(entry) and self.front.is_overfull:
            self.elect(list(self.front.members.values()))  # what it takes to come in is out of date
        return self.front.wants(entry)

    def _read_more(self, entry: Entry, directory: int) -> None:
        entry.see_oom_score_adj(files.read_oom_score_adj(directory))
        entry.see_status(files.read_status(directory, entry.thread_id), self._now_ns)
        if self.kept < self._kept_limit:
            entry.files = files.open_files(directory, entry.thread_id)
            self.kept += 1

    def _find_memory(self, entry: Entry) -> None:
        """A member of the front shows no memory: it is dead, or its leader has ended and a thread shows it."""
        self.visit(entry.pid)
        if not entry.gain_bytes and not entry.shared_bytes:
            self._dismiss(entry)

    def _fail_kept(self, entry: Entry, error: OSError) -> None:
        if files.tell_trouble(error) is Trouble.GONE:
            self._let_go(entry)
            self.visit(entry.pid)  # somebody else may hold the pid by now
        else:
            self._fail(entry.pid, error)

    def _fail(self, pid: int, error: OSError) -> bool:
        """What becomes of a process that could not be read; False: to be tried again."""
        entry = self.entries.get(pid)
        trouble = self.note(error)
        match trouble:
            case Trouble.GONE:
                if entry is None:
                    return False
                if entry.thread_id is not None:
                    entry.thread_id = None
                    self._let_go(entry)
                    return False
                self.vanished += 1
                self.drop(entry)
                return False
            case Trouble.REFUSED:
                self.refused.add(pid)
                if entry is not None:
                    self.drop(entry)
                return True
            case Trouble.CROWDED | Trouble.UNREAD:
                return False
            case _:
                assert_never(trouble)

    def _make_room(self) -> None:
        if self._has_made_room:
            return  # one round, one trouble, however many it strikes
        self._has_made_room = True
        keeping = [entry for entry in self.front.members.values() if entry.files is not None]
        keeping.sort(key=_gain_bytes)
        for entry in keeping[: max(min(len(keeping) // 2, len(keeping) - _KEPT_AT_LEAST), 0)]:
            self._let_go(entry)
        self._kept_limit = self.kept

    def _dismiss(self, entry: Entry) -> None:
        self._let_go(entry)
        self.front.dismiss(entry)

    def _let_go(self, entry: Entry) -> None:
        if entry.files is not None:
            files.close_files(entry.files)
            entry.files = None
            entry.statm_line = b""
            self.kept -= 1
