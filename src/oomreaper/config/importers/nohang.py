"""nohang's settings turned into ours.

Its file has a line ``key = value`` for each setting and lines ``@KEY number /// regex`` for its customised scores;
lines that begin with a blank, a tab or # are comments. Its soft level is our rule "low" (SIGTERM, SIGKILL after a
while), its hard level the rule "critical"; what it checks beside swap (zram, PSI) are rules of their own, since each is
an alternative.

What changes together with it: nohang's settings, as of version 0.3.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import NamedTuple

from oomreaper.config.importers.report import Draft, Imported
from oomreaper.config.importers.text import read_text_file, show_number
from oomreaper.config.values import show_text
from oomreaper.errors import ConfigError, Fault
from oomreaper.model.plan import MatchField

USUAL_FILES = ("/etc/nohang/nohang-desktop.conf", "/etc/nohang/nohang.conf")
# From this adjustment on nobody is ever nohang's victim: its scores end at 0, and it kills from 1 up.
_NEVER_POINTS = -1000
_FIELD_OF_KEY = {
    "@BADNESS_ADJ_RE_NAME": MatchField.COMM,
    "@BADNESS_ADJ_RE_CMDLINE": MatchField.CMDLINE,
    "@BADNESS_ADJ_RE_REALPATH": MatchField.EXE,
    "@BADNESS_ADJ_RE_CGROUP_V1": MatchField.CGROUP,
    "@BADNESS_ADJ_RE_CGROUP_V2": MatchField.CGROUP,
}
_LEVELS = {"soft": "low", "hard": "critical", "warning": "warning"}
_PSI_METRIC = {
    "some_avg10": ("psi_memory_some", "10s"),
    "some_avg60": ("psi_memory_some", "60s"),
    "full_avg10": ("psi_memory_full", "10s"),
    "full_avg60": ("psi_memory_full", "60s"),
}
_PSI_OF_MACHINE = "/proc/pressure/memory"
_OURSELVES = "oomreaper does this by itself"
# Settings without a counterpart, by pattern: the reason, and what to do instead.
_NO_COUNTERPART = (
    (r"(min|max)_sleep|fill_rate_\w+|over_sleep", "how often to look follows from how fast memory falls", ""),
    (r"post_(soft_action|zombie|oom|kill|action|warning)_delay|psi_post_action_delay|min_delay_after_\w+",
     "after a kill the memory is awaited, not a time", ""),
    (r"min_post_warning_delay", "a warning is told once in each shortage", ""),
    (r"victim_cache_time", "a victim is remembered until its memory is back", ""),
    (r"zfs_arc_available|check_kmsg|forbid_negative_badness", _OURSELVES, ""),
    (r"min_badness", "points are of another kind here", "victims.smallest"),
    (r"ignore_positive_oom_score_adj", "a raised oom_score_adj does not make a small process die first", ""),
    (r"post_action_gui_notifications|env_cache_time|warning_exe",
     "desktop notifications come with a later release",
     "a program of yours may read the events from the socket"),
    (r"max_soft_exit_time_.*|exe_timeout", "it belongs to a setting that has no counterpart", ""),
    (r"print_\w+|separate_log|debug_\w+|extra_table_info|log_\w+", "there is one record, of all decisions",
     "oomreaper explain"),
    (r"psi_path", "which group is watched is said otherwise", "rule.scope, or watch.within"),
)  # fmt: skip


class _Line(NamedTuple):
    number: int
    key: str
    value: str


def import_nohang(path: str | None) -> Imported:
    """Read nohang's file.

    Raises:
        ConfigError: It cannot be read, or is none of nohang's.
    """
    file = path or next((name for name in USUAL_FILES if os.path.lexists(name)), USUAL_FILES[-1])
    settings, scores, strays = _take_apart(read_text_file(file))
    if not settings and not scores:
        raise ConfigError((Fault(show_text(file), "", None, "there is no setting of nohang in it", "key = value"),))
    draft = Draft("nohang")
    reader = _Reader(draft, settings)
    _add_rules(draft, reader)
    _carry_others(draft, reader)
    for line in scores:
        _turn_score(draft, line)
    for line in strays:
        draft.leave(f"line {line.number}: {line.value}", "it is neither 'key = value' nor '@KEY value /// regex'")
    reader.leave_rest()
    return draft.finish((file,))


def _take_apart(text: str) -> tuple[dict[str, str], list[_Line], list[_Line]]:
    """The settings, the lines with scores and soft actions, and what is neither."""
    settings: dict[str, str] = {}
    scores, strays = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line[0] in "# \t":
            continue
        if line.startswith("@"):
            key, _, value = line.partition(" ")
            scores.append(_Line(number, key, value.strip()))
            continue
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"\w+", key.strip()):
            settings[key.strip()] = value.strip()
        else:
            strays.append(_Line(number, "", line))
    return settings, scores, strays


class _Reader:
    """The settings, and which of them nobody has asked for yet."""

    def __init__(self, draft: Draft, settings: dict[str, str]) -> None:
        self._draft = draft
        self._settings = settings
        self._rest = dict(settings)

    def take(self, key: str) -> str | None:
        """A setting's value; it is dealt with then."""
        self._rest.pop(key, None)
        return self._settings.get(key)

    def look(self, key: str) -> str | None:
        """A setting's value, which is not dealt with yet."""
        return self._settings.get(key)

    def take_flag(self, key: str) -> bool:
        """Whether a setting is True."""
        value = self.take(key)
        is_on = value == "True"
        if value is not None:
            self._draft.carry(f"{key} = {value}", "rules of its own" if is_on else "no rule")
        return is_on

    def pass_over(self, key: str) -> None:
        """A setting of a check that is switched off."""
        value = self.take(key)
        if value is not None:
            self._draft.carry(f"{key} = {value}", "nothing", "its check is switched off")

    def take_level(self, key: str, metric: str, sign: str) -> str | None:
        """A level as a condition; None when there is none, or none that makes sense."""
        value = self.take(key)
        if value is None:
            return None
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([%M]?)", value)
        if match is None or (not match[2] and not metric.startswith("psi")):
            self._draft.leave(f"{key} = {value}", "it is neither per cent (5 %) nor a size (500 M)")
            return None
        unit = "%" if match[2] != "M" else "M"
        note = ""
        if unit == "M" and "swap" in key:
            note = "nohang itself takes this for KiB by mistake, so its level was 1024 times lower"
        condition = f"{metric} {sign} {show_number(float(match[1]))}{unit}"
        if float(match[1]) == 0 and sign == ">":
            self._draft.leave(f"{key} = {value}", "such a condition always holds", "leave it out")
            return None
        self._draft.carry(f"{key} = {value}", condition, note)
        return condition

    def leave_rest(self) -> None:
        """Name what nobody has asked for."""
        for key, value in self._rest.items():
            setting = f"{key} = {value}"
            for pattern, reason, instead in _NO_COUNTERPART:
                if re.fullmatch(pattern, key):
                    self._draft.leave(setting, reason, instead)
                    break
            else:
                self._draft.leave(setting, "there is nothing like it here, or it is no setting of nohang")


# -- levels ------------------------------------------------------------------------------------------------


def _add_rules(draft: Draft, reader: _Reader) -> None:
    is_warned = reader.take_flag("low_memory_warnings_enabled")
    has_zram = reader.take_flag("zram_checking_enabled")
    has_psi = reader.take_flag("psi_checking_enabled")
    patience = _read_patience(draft, reader)
    psi = _read_psi(draft, reader) if has_psi else None
    lasting = _read_seconds(draft, reader, "psi_excess_duration", "rule.for") if psi else None
    levels = [level for level in _LEVELS if level != "warning" or is_warned]
    memory = {level: reader.take_level(f"{level}_threshold_min_mem", "mem_available", "<") for level in levels}
    harder = memory["hard"]
    for level in levels:
        condition = memory[level]
        swap = reader.take_level(f"{level}_threshold_min_swap", "swap_free", "<")
        zram = reader.take_level(f"{level}_threshold_max_zram", "zram_used", ">") if has_zram else None
        stall = reader.take_level(f"{level}_threshold_max_psi", psi[0], ">") if psi else None
        if condition is None:
            continue
        then = {
            "soft": ["terminate", f"kill after {patience}" + (f" or {harder}" if harder else "")],
            "hard": ["kill"],
            "warning": ["warn"],
        }[level]
        name = _LEVELS[level]
        draft.add_rule(name=name, when=[condition, *([swap] if swap else [])], then=then)
        if zram:
            draft.add_rule(name=f"{name}-zram", when=[condition, zram], then=then)
        if stall and psi:
            draft.add_rule(name=f"{name}-psi", when=[f"{stall} over {psi[1]}", condition], for_=lasting, then=then)
    if harder:
        draft.set("kill", "critical", harder)
    for is_on, keys in (
        (has_zram, [f"{level}_threshold_max_zram" for level in _LEVELS]),
        (has_psi and psi, [f"{level}_threshold_max_psi" for level in _LEVELS]),
        (has_psi, ["psi_metrics", "psi_excess_duration", "psi_path"]),
        (is_warned, ["warning_threshold_min_mem", "warning_threshold_min_swap"]),
        (is_warned, ["warning_threshold_max_zram", "warning_threshold_max_psi"]),
    ):
        for key in () if is_on else keys:
            reader.pass_over(key)


def _read_psi(draft: Draft, reader: _Reader) -> tuple[str, str] | None:
    value = reader.take("psi_metrics") or "full_avg10"
    if value in _PSI_METRIC:
        draft.carry(f"psi_metrics = {value}", " over ".join(_PSI_METRIC[value]))
        if reader.look("psi_path") == _PSI_OF_MACHINE:
            draft.carry(f"psi_path = {reader.take('psi_path')}", 'scope = "machine"')
        return _PSI_METRIC[value]
    draft.leave(f"psi_metrics = {value}", "pressure is averaged over 60 s at most", "the rules with psi are left out")
    return None


def _read_patience(draft: Draft, reader: _Reader) -> str:
    return _read_seconds(draft, reader, "max_soft_exit_time", "the ladder of rule low") or "10s"


def _read_seconds(draft: Draft, reader: _Reader, key: str, became: str) -> str | None:
    value = reader.take(key)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", value):
        draft.leave(f"{key} = {value}", "it is no number of seconds")
        return None
    draft.carry(f"{key} = {value}", became)
    return f"{show_number(float(value))}s"


# -- the rest ----------------------------------------------------------------------------------------------


def _carry_others(draft: Draft, reader: _Reader) -> None:
    command = reader.take("post_kill_exe")
    if not command:
        return
    setting = f"post_kill_exe = {command}"
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words or not words[0].startswith("/") or re.search(r"[$|&;<>`*?]", command):
        draft.leave(
            setting, "there is no shell and no $PID here", "a script of yours in hooks.post_kill; see its environment"
        )
        return
    draft.set("hooks", "post_kill", words)
    draft.carry(setting, "hooks.post_kill", "also after a SIGTERM that was enough")


def _turn_score(draft: Draft, line: _Line) -> None:
    setting = f"{line.key} {line.value}"
    if line.key.startswith("@SOFT_ACTION"):
        draft.leave(
            setting, "a command of one's own instead of SIGTERM is not offered", "hooks.pre_kill, for every victim"
        )
        return
    match = re.fullmatch(r"(-?[0-9]+)\s*///\s*(.+)", line.value)
    if match is None:
        draft.leave(setting, "it is not '@KEY number /// regex'")
        return
    points, regex = int(match[1]), match[2].strip()
    key = "prefer" if points > 0 else "never" if points <= _NEVER_POINTS else "avoid"
    if points == 0:
        draft.leave(setting, "zero points change nothing")
    elif line.key == "@BADNESS_ADJ_RE_UID":
        number = re.fullmatch(r"\^([0-9]{1,9})\$", regex)
        if number is None:
            draft.leave(setting, "users are named one by one here", f"victims.{key} = [{{user = ...}}]")
            return
        draft.add_matcher(key, {"user": number[1]})
        draft.carry(setting, f"victims.{key}: user {number[1]}", _tell_points(points))
    elif line.key in _FIELD_OF_KEY:
        draft.carry_pattern(setting, key, _FIELD_OF_KEY[line.key], regex, _tell_points(points))
    else:
        what = {"@BADNESS_ADJ_RE_ENVIRON": "a process's environment", "@BADNESS_ADJ_RE_CWD": "its working directory"}
        looked_at = what.get(line.key, "that")
        draft.leave(setting, f"{looked_at} is not looked at", f"match comm, exe, cmdline or unit under victims.{key}")


def _tell_points(points: int) -> str:
    return f"{points:+d} points in nohang; there are no points of one's own here"
