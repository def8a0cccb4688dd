"""systemd-oomd's settings turned into ours: oomd.conf, its drop-ins, and the ManagedOOM* settings of units.

systemd-oomd watches nothing by itself: it acts on the units that say ``ManagedOOMSwap=kill`` or
``ManagedOOMMemoryPressure=kill``, and on what lies below them. Each becomes a rule. The limits that such a unit does
not set come from oomd.conf. Files are taken as systemd takes them: in the order of their names, a later one over an
earlier, an empty value back to the default.

What changes together with it: systemd's settings, as of version 261.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.config.importers.report import Draft, Imported
from oomreaper.config.importers.text import convert_share, convert_time_span, read_text_file, show_number
from oomreaper.config.values import show_text
from oomreaper.errors import ConfigError, Fault
from oomreaper.model.plan import MACHINE

if TYPE_CHECKING:
    from collections.abc import Iterator

USUAL_PLACES = (
    "/usr/lib/systemd/oomd.conf.d",
    "/etc/systemd/oomd.conf",
    "/etc/systemd/oomd.conf.d",
    "/usr/lib/systemd/system",
    "/etc/systemd/system",
    "/run/systemd/system",
)
_UNIT = re.compile(r"[^/]+\.(?:service|slice|scope|socket|mount|swap)\Z")
# What a directory may hold that concerns us; a machine has a few thousand unit files.
_MOST_FILES = 20_000
_DEFAULTS = {
    "SwapUsedLimit": "90%",
    "DefaultMemoryPressureLimit": "60%",
    "DefaultMemoryPressureDurationSec": "30s",
}
_ALL_PERCENT = 100


class _Setting(NamedTuple):
    unit: str  # empty for oomd.conf itself
    key: str
    value: str
    file: str

    @property
    def words(self) -> str:
        return f"{self.unit + ': ' if self.unit else ''}{self.key}={self.value}"


def import_systemd_oomd(path: str | None) -> Imported:
    """Read systemd-oomd's file, or a directory with units and drop-ins, or all the usual places.

    Raises:
        ConfigError: It cannot be read, or there is nothing of systemd-oomd in it.
    """
    places = USUAL_PLACES if path is None else (path,)
    settings: dict[tuple[str, str], _Setting] = {}
    files: list[str] = []
    for file in _list_files(places, is_asked=path is not None):
        found = list(_read_settings(file))
        for setting in found:
            settings[setting.unit, setting.key] = setting
        if found:
            files.append(file)
    if not settings:
        where = show_text(", ".join(places))
        fault = Fault(
            where, "", None, "there is no setting of systemd-oomd", "[OOM] in oomd.conf, or ManagedOOM* in a unit"
        )
        raise ConfigError((fault,))
    draft = Draft("systemd-oomd")
    _Turning(draft, {key: setting for key, setting in settings.items() if setting.value}).turn()
    return draft.finish(tuple(files))


# -- files -------------------------------------------------------------------------------------------------


def _list_files(places: tuple[str, ...], *, is_asked: bool) -> Iterator[str]:
    number = 0
    for place in places:
        if not os.path.isdir(place):
            if is_asked or os.path.isfile(place):
                yield place
            continue
        for directory, subdirectories, names in os.walk(place):
            # A unit's own file is read before its drop-ins, and these in the order of their names.
            subdirectories[:] = sorted(name for name in subdirectories if not name.endswith((".wants", ".requires")))
            for name in sorted(names):
                path = os.path.join(directory, name)
                if not (name.endswith(".conf") or _UNIT.match(name)) or not os.path.isfile(path):
                    continue
                number += 1
                if number > _MOST_FILES:
                    fault = Fault(show_text(place), "", None, f"more than {_MOST_FILES} files", "a directory of units")
                    raise ConfigError((fault,))
                yield path


def _read_settings(file: str) -> Iterator[_Setting]:
    unit = _name_unit(file)
    section = ""
    for line in read_text_file(file).replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if stripped.startswith("["):
            section = stripped.strip("[]")
            continue
        key, equals, value = (part.strip() for part in stripped.partition("="))
        if not equals:
            continue
        if section == "OOM":
            yield _Setting("", key, value, file)
        elif key.startswith("ManagedOOM") or key == "OOMRules":
            yield _Setting(unit or os.path.basename(file), key, value, file)


def _name_unit(file: str) -> str:
    """The unit that a file, or a drop-in of one, speaks of; empty for none."""
    name = os.path.basename(file)
    if _UNIT.match(name):
        return name
    directory = os.path.basename(os.path.dirname(os.path.abspath(file)))
    return (
        directory.removesuffix(".d") if directory.endswith(".d") and _UNIT.match(directory.removesuffix(".d")) else ""
    )


# -- settings ----------------------------------------------------------------------------------------------


def find_scope(unit: str) -> str:
    """Our scope for a unit: a pattern that its group's path matches, wherever its slice is."""
    if unit == "-.slice":
        return MACHINE
    escaped = re.sub(r"([\[*?])", r"[\1]", unit)
    # user@.service stands for user@1000.service and all the others.
    return "*/" + re.sub(r"@\.(?=[a-z]+\Z)", "@*.", escaped)


class _Turning:
    """All the settings on their way."""

    def __init__(self, draft: Draft, settings: dict[tuple[str, str], _Setting]) -> None:
        self._draft = draft
        self._settings = settings

    def turn(self) -> None:
        """Every setting is carried over or left."""
        units = sorted({unit for unit, _ in self._settings if unit})
        for unit in units:
            self._turn_swap(unit)
            self._turn_pressure(unit)
            self._turn_preference(unit)
        acts = any(
            setting.value == "kill" and key in ("ManagedOOMSwap", "ManagedOOMMemoryPressure")
            for (_, key), setting in self._settings.items()
        )
        self._turn_global(acts=acts)
        for unit, key in sorted(self._settings):
            if key not in _DEALT_WITH:
                why = "rules of systemd's own (OOMRules=) are not read" if key == "OOMRules" else "it is not known here"
                self._draft.leave(self._settings[unit, key].words, why, "write a [[rule]]" if key == "OOMRules" else "")
        if acts:
            self._draft.leave(
                "(built in) the whole control group dies",
                "here it is the one process that gives back most",
                'victims.unit = "cgroup", if that is what you want',
            )
        else:
            self._draft.leave(
                "(nothing says kill)",
                "no unit that was read has ManagedOOMSwap=kill or ManagedOOMMemoryPressure=kill, so systemd-oomd "
                "watches nothing",
                "the default rules hold",
            )

    def _share(self, unit: str, key: str, fallback: str) -> float:
        setting = self._settings.get((unit, key))
        if setting is not None:
            share = convert_share(setting.value)
            if share is not None and (share > 0 or key != "ManagedOOMMemoryPressureLimit"):
                if unit:
                    self._draft.carry(setting.words, "the level of its rule")
                return share
            if unit and share is None:
                self._draft.leave(setting.words, "it is no share from 0% to 100%", "the default is taken")
            elif unit:
                self._draft.carry(setting.words, "the level of its rule", "0 stands for the default of systemd-oomd")
        if fallback != key and unit:
            return self._share("", fallback, fallback)
        default = convert_share(_DEFAULTS[fallback])
        assert default is not None
        return default

    def _time(self, unit: str) -> str:
        for owner, key in ((unit, "ManagedOOMMemoryPressureDurationSec"), ("", "DefaultMemoryPressureDurationSec")):
            setting = self._settings.get((owner, key))
            span = None if setting is None else convert_time_span(setting.value)
            if setting is not None and owner:
                if span is None:
                    self._draft.leave(
                        setting.words, "it is no span of time that can be carried over", "the default is taken"
                    )
                else:
                    self._draft.carry(setting.words, f'for = "{span}"')
            if span is not None:
                return span
        return _DEFAULTS["DefaultMemoryPressureDurationSec"]

    def _turn_swap(self, unit: str) -> None:
        setting = self._settings.get((unit, "ManagedOOMSwap"))
        if setting is None:
            return
        if setting.value != "kill":
            self._draft.carry(setting.words, "no rule")
            return
        free = show_number(_ALL_PERCENT - self._share("", "SwapUsedLimit", "SwapUsedLimit"))
        scope = find_scope(unit)
        self._draft.add_rule(
            name=_name_rule("swap", unit),
            scope=scope,
            when=[f"mem_available < {free}%", f"swap_free < {free}%"],
            then=["kill"],
        )
        note = (
            "" if scope == MACHINE else "levels are those of the group's own limit; a group without one is not watched"
        )
        self._draft.carry(setting.words, f"rule {_name_rule('swap', unit)}", note)

    def _turn_pressure(self, unit: str) -> None:
        setting = self._settings.get((unit, "ManagedOOMMemoryPressure"))
        has_limits = [key for key in _PRESSURE_LIMITS if (unit, key) in self._settings]
        if setting is None or setting.value != "kill":
            if setting is not None:
                self._draft.carry(setting.words, "no rule")
            for key in has_limits:
                self._draft.leave(
                    self._settings[unit, key].words, "the unit does not say ManagedOOMMemoryPressure=kill"
                )
            return
        limit = show_number(self._share(unit, "ManagedOOMMemoryPressureLimit", "DefaultMemoryPressureLimit"))
        scope = find_scope(unit)
        name = _name_rule("pressure", unit)
        self._draft.add_rule(
            name=name,
            scope=scope,
            when=[f"psi_memory_full > {limit}% over 10s"],
            for_=self._time(unit),
            then=["kill"],
        )
        note = "" if scope == MACHINE else "a group without a memory limit is not watched; give the unit MemoryMax="
        self._draft.carry(setting.words, f"rule {name}", note)

    def _turn_preference(self, unit: str) -> None:
        setting = self._settings.get((unit, "ManagedOOMPreference"))
        if setting is None:
            return
        if setting.value not in ("avoid", "omit"):
            self._draft.carry(setting.words, "nothing to set")
            return
        key = "avoid" if setting.value == "avoid" else "never"
        if unit.endswith((".service", ".scope")):
            pattern = re.sub(r"@\.(?=[a-z]+\Z)", "@*.", re.sub(r"([\[*?])", r"[\1]", unit))
            self._draft.add_matcher(key, {"unit": pattern})
        else:
            self._draft.add_matcher(key, {"cgroup": f"{find_scope(unit)}/*"})
        note = "the attribute that systemd sets for it is honoured besides"
        self._draft.carry(setting.words, f"victims.{key}", note)

    def _turn_global(self, *, acts: bool) -> None:
        for key, default in _DEFAULTS.items():
            setting = self._settings.get(("", key))
            if setting is None:
                continue
            is_read = convert_time_span(setting.value) if key.endswith("Sec") else convert_share(setting.value)
            if is_read is None:
                self._draft.leave(setting.words, "it cannot be read", f"systemd's default, {default}, is taken")
            elif acts:
                self._draft.carry(setting.words, "the levels of the rules")
            else:
                self._draft.leave(setting.words, "no unit makes use of it")
        hook = self._settings.get(("", "PrekillHookTimeoutSec"))
        if hook is not None:
            self._draft.leave(
                hook.words,
                "hooks over varlink (io.systemd.oom.Prekill) are not called",
                "a program in hooks.pre_kill, with hooks.pre_kill_timeout",
            )


_PRESSURE_LIMITS = ("ManagedOOMMemoryPressureLimit", "ManagedOOMMemoryPressureDurationSec")
_DEALT_WITH = frozenset(
    {*_DEFAULTS, *_PRESSURE_LIMITS, "ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMPreference"}
    | {"PrekillHookTimeoutSec"}
)


def _name_rule(kind: str, unit: str) -> str:
    """A rule's name out of a unit's; the root slice needs none."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", unit)
    return kind if unit == "-.slice" else f"{kind}-{plain}"[:64]
