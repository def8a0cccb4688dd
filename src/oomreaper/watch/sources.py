"""Where the watcher's numbers and hints come from: the machine, and each control group with a limit of its own.

What it knows: which files of the kernel stand for a scope, and which descriptors give a hint that it is worth a look.
What it refuses to know: what the numbers mean. Nothing here opens a file on the way to a kill: ``on_time``, which the
loop calls while nothing is urgent, looks for new groups, opens what has come and tries again what could not be opened.

The machine is what there is to use. In a container that is its own limit, and with ``within`` it is the group of that
name, whose members are then the only victims.
"""

from __future__ import annotations

import fnmatch
import re
import select
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.errors import KernelError
from oomreaper.linux import cgroup, eventfds, memcg_tree, psi
from oomreaper.linux.memcg import GroupGoneError, GroupMemory, combine
from oomreaper.linux.meminfo import MachineMemory
from oomreaper.model.plan import MACHINE, Metric
from oomreaper.watch.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.linux.eventfds import GroupEvents
    from oomreaper.linux.memcg_tree import Group
    from oomreaper.model.plan import Plan, Rule
    from oomreaper.model.sample import ScopeSample

_SECOND_NS = 1_000_000_000
# A walk over all groups is begun this often, and goes on by so many directories a second: 10,000 groups are walked in
# half a minute, and a second of it costs about 2 ms (2026-11).
_WALK_EVERY_NS = 5 * _SECOND_NS
_DIRECTORIES_A_STEP = 300
# Groups that are watched at most: eight descriptors each, and a look at each at least once a second.
_MOST_GROUPS = 256
# What a machine may come to have while we run (a zram device, a changed limit above) is looked for this often.
_REFRESH_EVERY_NS = 10 * _SECOND_NS
# A hint is wanted early: at a tenth of a second of waiting within a second. The numbers decide what it is worth.
_HINT_STALL_US = 100_000
_HINT_WINDOW_US = 1_000_000
_V2 = 2


class Hint(NamedTuple):
    """A descriptor that gives hints: ``key`` tells one life of its number from the next, ``mask`` is epoll's."""

    key: object
    mask: int


class _Scope:
    """A group that is watched."""

    __slots__ = ("directory", "events", "memory")

    def __init__(self, directory: str, memory: GroupMemory, events: list[GroupEvents]) -> None:
        self.directory = directory
        self.memory = memory
        self.events = events

    def close(self) -> None:
        for event in self.events:
            event.close()
        self.memory.close()


class Sources(Service):
    """All sources.

    Args:
        plan: ``within`` and the scopes of its rules are read.
        proc_root: A descriptor of /proc, kept open by the caller.
        sys_root: The path of /sys.
        on_trouble: Called with what cannot be watched, in words, and the time; once for each.
        on_gone: Called with a group that has gone.

    Raises:
        KernelError: There is no meminfo, or no group of the name that ``within`` has.
    """

    def __init__(
        self,
        plan: Plan,
        proc_root: int,
        *,
        on_trouble: Callable[[str, int], None],
        on_gone: Callable[[str], None],
        sys_root: str = "/sys",
    ) -> None:
        self._proc = proc_root
        self._on_trouble = on_trouble
        self._on_gone = on_gone
        self._told: set[str] = set()
        self._mounts = cgroup.read_mounts(proc_root)
        self._mount = memcg_tree.find_memory_mount(self._mounts)
        self._triggers: dict[psi.Kind, psi.Trigger] = {}
        self._scopes: dict[str, _Scope] = {}
        self._by_event: dict[int, tuple[str, GroupEvents]] = {}
        self._event_hints: dict[int, Hint] = {}
        self.version = self._trigger_key = 0  # ``version`` counts the changes of ``hints``
        self._machine_sample: ScopeSample | None = None
        self._walk_ns = self._refresh_ns = self._step_ns = 0
        self._within = plan.within
        self._stand_in: GroupMemory | None = None
        self._stand_in_events: list[GroupEvents] = []
        try:
            self._machine = MachineMemory(proc_root, sys_root)
        except OSError as error:
            raise KernelError(f"/proc/meminfo cannot be read: {error.strerror}") from error
        total_bytes = self._machine.read(0).total_bytes
        self._find_stand_in(total_bytes)
        self._total_bytes = total_bytes
        self.adopt(plan, 0)

    def adopt(self, plan: Plan, now_ns: int) -> None:
        """Watch what the rules of a plan look at; ``within`` cannot change while we run."""
        rules = [rule for rule in plan.rules if rule.scope != MACHINE]
        self._is_wanted = _matcher_of(rules, self._within)
        self._discovery: memcg_tree.Discovery | None = None
        for scope in [scope for scope in self._scopes if not self._is_wanted(scope)]:
            self._drop(scope)
            self._on_gone(scope)  # whoever remembers when it is to be looked at next must not
        if rules and self._mount is not None:
            self._discovery = memcg_tree.Discovery(self._mount, self._total_bytes, self._is_wanted)
        self._walk_ns = now_ns
        self._arm_triggers(plan, now_ns)

    # -- for the watcher -----------------------------------------------------------------------------------

    @property
    def within_directory(self) -> str | None:
        """The directory of the group whose members are the only victims; None: everybody we see."""
        return self._stand_in.directory if self._within is not None and self._stand_in is not None else None

    def scopes(self) -> list[str]:
        """The machine, and each group that is watched."""
        return [MACHINE, *self._scopes]

    def read(self, scope: str, now_ns: int) -> ScopeSample | None:
        """The numbers of a scope; None when it has gone or cannot be read now."""
        try:
            if scope == MACHINE:
                return self._read_machine(now_ns)
            watched = self._scopes.get(scope)
            if watched is None:
                return None
            machine = self._machine_sample
            if machine is None or now_ns - machine.monotonic_ns > _SECOND_NS:
                machine = self._machine.read(now_ns)
            return watched.memory.read(now_ns, machine)
        except GroupGoneError:
            self._on_group_gone(scope, now_ns)
        except OSError as error:
            self._tell_once(f"the memory of {scope} cannot be read: {error.strerror}", now_ns)
        return None

    def directory_of(self, scope: str) -> str | None:
        """Where a group's files are; None when our mounts do not show it."""
        return self._mount.path_of(scope) if self._mount is not None else None

    # -- for the loop --------------------------------------------------------------------------------------

    def hints(self) -> dict[int, Hint]:
        """The descriptors that give hints."""
        hints = {it.fileno(): Hint(("psi", self._trigger_key), select.EPOLLPRI) for it in self._triggers.values()}
        hints.update(self._event_hints)
        return hints

    def on_hint(self, fileno: int, mask: int, now_ns: int) -> str | None:
        """A descriptor has given a hint; the scope that is worth a look, or None when it was a false one."""
        for kind, trigger in self._triggers.items():
            if trigger.fileno() != fileno:
                continue
            try:
                if not psi.is_group_gone(mask):
                    return MACHINE if trigger.has_grown() else None
            except OSError:
                pass
            self._lose_trigger(kind, now_ns)
            return MACHINE
        found = self._by_event.get(fileno)
        if found is None:
            return None
        scope, event = found
        try:
            return scope if event.drain() else None
        except GroupGoneError:
            self._on_group_gone(scope, now_ns)
            return None  # there is nothing left to look at, and whoever looked would remember it for ever
        except OSError as error:
            self._tell_once(f"the events of {scope} cannot be read: {error.strerror}", now_ns)
            self._forget_event(fileno)
        return scope

    def next_deadline_ns(self) -> int | None:
        """A step of the walk is due each second; nobody has to be woken for it."""
        return None

    def on_time(self, now_ns: int) -> None:
        """Look for groups that have come or gone; try again what failed. At most once a second."""
        if now_ns - self._step_ns < _SECOND_NS:
            return
        self._step_ns = now_ns
        if now_ns - self._refresh_ns >= _REFRESH_EVERY_NS:
            self._refresh_ns = now_ns
            self._refresh(now_ns)
        if self._discovery is not None and now_ns >= self._walk_ns:
            self._walk(now_ns)

    def close(self) -> None:
        """Give all descriptors up."""
        for trigger in self._triggers.values():
            trigger.close()
        self._triggers.clear()
        for scope in list(self._scopes):
            self._drop(scope)
        for event in self._stand_in_events:
            event.close()
        if self._stand_in is not None:
            self._stand_in.close()
        self._machine.close()

    # -- within --------------------------------------------------------------------------------------------

    def _find_stand_in(self, total_bytes: int) -> None:
        """The group that stands for the machine, where one does."""
        if self._within is not None:
            if self._mount is None:
                raise KernelError(f"there is no memory controller here, so no group {self._within} to stay within")
            scope = self._within
        else:
            top = None if self._mount is None else memcg_tree.find_own_top(self._mount, total_bytes)
            if top is None:
                return
            scope = top.scope
        assert self._mount is not None
        try:
            self._stand_in = memcg_tree.open_stand_in(self._mount, scope)
        except (GroupGoneError, OSError) as error:
            if self._within is None:
                return
            raise KernelError(f"the memory cgroup {scope} cannot be watched: {error}") from error
        self._stand_in_events = self._open_events(self._stand_in.directory, self._stand_in.version, 0)
        for event in self._stand_in_events:
            self._keep_event(MACHINE, event)

    def _read_machine(self, now_ns: int) -> ScopeSample:
        sample = self._machine_sample = self._machine.read(now_ns)
        if self._stand_in is None:
            return sample
        return combine(sample, self._stand_in.read(now_ns, sample))

    def _arm_triggers(self, plan: Plan, now_ns: int) -> None:
        wanted: set[psi.Kind] = {"some"}
        if any(condition.metric is Metric.PSI_MEMORY_FULL for rule in plan.rules for condition in rule.when):
            wanted.add("full")
        for kind in sorted(wanted - self._triggers.keys()):
            try:
                trigger = psi.open_trigger(
                    "pressure/memory",
                    kind,
                    stall_us=_HINT_STALL_US,
                    window_us=_HINT_WINDOW_US,
                    directory=self._proc,
                )
            except OSError as error:
                self._tell_once(f"memory pressure gives no hints now: {error.strerror}", now_ns)
                continue
            if isinstance(trigger, psi.Refusal):
                self._tell_once(
                    f"memory pressure gives no hints here ({trigger.reason}): looks go by the timer", now_ns
                )
            else:
                self._triggers[kind] = trigger
                self.version += 1

    def _lose_trigger(self, kind: psi.Kind, now_ns: int) -> None:
        trigger = self._triggers.pop(kind)
        self.version += 1
        self._trigger_key += 1  # its number may come back as another's
        try:
            trigger.rearm()
        except OSError as error:
            trigger.close()
            self._tell_once(f"memory pressure gives no more hints: {error.strerror}", now_ns)
        else:
            self._triggers[kind] = trigger
            self.version += 1

    def _refresh(self, now_ns: int) -> None:
        self._machine.refresh()
        for memory in (*([self._stand_in] if self._stand_in else []), *(it.memory for it in self._scopes.values())):
            try:
                memory.refresh()
            except GroupGoneError:
                self._on_group_gone(memory.scope, now_ns)
            except OSError:
                continue  # the limits that were known stay in force

    def _walk(self, now_ns: int) -> None:
        assert self._discovery is not None
        try:
            changes = self._discovery.step(_DIRECTORIES_A_STEP)
        except OSError as error:
            self._tell_once(f"the control groups cannot be listed now: {error.strerror}", now_ns)
            return
        for change in changes:
            if change.is_new:
                self._add(change.group, now_ns)
            else:
                self._on_group_gone(change.group.scope, now_ns)
        if self._discovery.is_between_walks:
            self._walk_ns = now_ns + _WALK_EVERY_NS

    def _add(self, group: Group, now_ns: int) -> None:
        if group.scope in self._scopes:  # known before the plan was changed
            return
        if len(self._scopes) >= _MOST_GROUPS:
            if self._discovery is not None:
                self._discovery.forget(group.scope)  # there may be room at the next walk
            self._tell_once(f"only {_MOST_GROUPS} control groups are watched; narrow the scope of the rules", now_ns)
            return
        top = self._mount.directory if self._mount is not None else None
        try:
            memory = GroupMemory(group.directory, group.scope, group.version, top=top)
        except (GroupGoneError, OSError) as error:
            if self._discovery is not None:
                self._discovery.forget(group.scope)  # so that the next walk finds it anew
            if not isinstance(error, GroupGoneError):
                self._tell_once(f"the control group {group.scope} cannot be watched: {error.strerror}", now_ns)
            return
        events = self._open_events(group.directory, group.version, now_ns)
        self._scopes[group.scope] = _Scope(group.directory, memory, events)
        for event in events:
            self._keep_event(group.scope, event)

    def _open_events(self, directory: str, version: int, now_ns: int) -> list[GroupEvents]:
        openers: list[Callable[[], GroupEvents]] = (
            [lambda: eventfds.open_events(directory)]
            if version == _V2
            else [
                lambda: eventfds.open_oom_event(directory),
                lambda: eventfds.open_pressure_event(directory, "medium"),
            ]
        )
        events: list[GroupEvents] = []
        for opener in openers:
            try:
                events.append(opener())
            except GroupGoneError:
                break
            except OSError as error:
                self._tell_once(f"control groups give no hints here ({error.strerror}): looks go by the timer", now_ns)
        return events

    def _on_group_gone(self, scope: str, now_ns: int) -> None:
        if scope == MACHINE:
            self._tell_once("the control group to stay within has gone", now_ns)
            return
        self._drop(scope)
        if self._discovery is not None:
            self._discovery.forget(scope)
        self._on_gone(scope)

    def _drop(self, scope: str) -> None:
        watched = self._scopes.pop(scope, None)
        if watched is None:
            return
        for event in watched.events:
            self._forget_event(event.fileno())
        watched.close()

    def _keep_event(self, scope: str, event: GroupEvents) -> None:
        self.version += 1
        mask = select.EPOLLPRI if event.poll_events == select.POLLPRI else select.EPOLLIN
        self._by_event[event.fileno()] = (scope, event)
        self._event_hints[event.fileno()] = Hint(("group", self.version), mask)

    def _forget_event(self, fileno: int) -> None:
        self.version += 1
        self._by_event.pop(fileno, None)
        self._event_hints.pop(fileno, None)

    def _tell_once(self, text: str, now_ns: int) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_trouble(text, now_ns)


def _matcher_of(rules: list[Rule], within: str | None) -> Callable[[str], bool]:
    patterns = [re.compile(fnmatch.translate(rule.scope)) for rule in rules]
    prefix = None if within is None else within.rstrip("/") + "/"

    def is_wanted(scope: str) -> bool:
        if prefix is not None and not scope.startswith(prefix):
            return False
        return any(pattern.match(scope) for pattern in patterns)

    return is_wanted
