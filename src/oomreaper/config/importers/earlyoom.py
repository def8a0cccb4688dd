"""earlyoom's arguments turned into our settings.

They stand in /etc/default/earlyoom as EARLYOOM_ARGS, which two programs read in two ways. systemd takes the assignment
apart with rules of its own and splits the value at blanks; init scripts let the shell do both. Where the two disagree,
quotes became part of the regular expression, matched nothing, and the processes that were to be spared were killed
(earlyoom's issue 380). So quotes are taken for what was meant, and each that is left in a pattern is named.

What changes together with it: earlyoom's options, as of version 1.9.
"""

from __future__ import annotations

import getopt
import os
import re
import shlex

from oomreaper.config.importers.report import Draft, Imported
from oomreaper.config.importers.text import convert_posix_regex, read_text_file, show_number
from oomreaper.config.values import show_text
from oomreaper.errors import ConfigError, Fault
from oomreaper.model.plan import MatchField

USUAL_FILE = "/etc/default/earlyoom"
_VARIABLE = "EARLYOOM_ARGS"
_SHORT = "m:s:M:S:kingN:P:dvr:ph"
_LONG = (
    "prefer=", "avoid=", "ignore=", "ignore-root-user", "sort-by-rss", "dryrun", "syslog", "kernel-oom", "help",
    "debug",
)  # fmt: skip
# What earlyoom does where nothing is said: SIGTERM at 10 %, SIGKILL at half of that.
_DEFAULT_PERCENT = 10.0
_ALL_PERCENT = 100
_PATTERNS = {"--prefer": "prefer", "--avoid": "avoid", "--ignore": "never"}
_NEEDLESS = {
    "-k": ("earlyoom itself ignores it", ""),
    "-i": ("earlyoom itself ignores it", "set oom_score_adj to 0 if such processes die first"),
    "-r": ("there is no report at intervals", "oomreaper explain tells how things stand at any time"),
    "-p": ("the priority is the service's own, not a setting", "it stands in oomreaper.service"),
    "-d": ("there is no debug output", "oomreaper explain"),
    "--debug": ("there is no debug output", "oomreaper explain"),
    "-v": ("it prints earlyoom's version", "oomreaper --version"),
    "-h": ("it prints earlyoom's help", "oomreaper --help"),
    "--help": ("it prints earlyoom's help", "oomreaper --help"),
    "--syslog": ("what is printed goes to the journal by itself", ""),
    "--dryrun": ("it is a command's option, not a setting", "oomreaper run --dry-run"),
    "--kernel-oom": (
        "to have the kernel choose is not offered: it cannot free the memory of a process that does not die",
        "remove it",
    ),
    "-n": (
        "desktop notifications come with a later release",
        "a program of yours may read the events from the socket, or be hooks.post_kill",
    ),
}


class _Limit:
    """The two levels of memory or swap, in per cent or KiB: None where nothing was said."""

    def __init__(self) -> None:
        self.term: float | None = None
        self.kill: float | None = None

    def read(self, text: str) -> bool:
        """``TERM[,KILL]``; False when it is no such thing."""
        match = re.fullmatch(r"=?\s*([0-9]+(?:\.[0-9]+)?)(?:,([0-9]+(?:\.[0-9]+)?))?\s*", text)
        if match is None:
            return False
        self.term = float(match[1])
        self.kill = self.term / 2 if match[2] is None else float(match[2])
        # earlyoom raises the first to the second, with a warning.
        self.term = max(self.term, self.kill)
        return True


def import_earlyoom(path: str | None) -> Imported:
    """Read earlyoom's file, a unit that starts it, or a file with nothing but its arguments.

    Raises:
        ConfigError: It cannot be read, or has no arguments for earlyoom in it.
    """
    file = USUAL_FILE if path is None else path
    text = read_text_file(file)
    value = find_arguments(text)
    if value is None:
        raise ConfigError(
            (Fault(show_text(file), "", None, "there are no arguments for earlyoom", f"{_VARIABLE}= or ExecStart="),)
        )
    draft = Draft("earlyoom")
    _turn(draft, _split(draft, value, file), file)
    return draft.finish((file,))


# -- the file ----------------------------------------------------------------------------------------------


def find_arguments(text: str) -> str | None:
    """The arguments as one text; None when there are none. The last assignment counts, as it does for both readers."""
    found = None
    for match in re.finditer(rf"^[ \t]*(?:export[ \t]+)?{_VARIABLE}[ \t]*=[ \t]*", text, re.MULTILINE):
        found = read_environment_value(text[match.end() :])
    if found is not None:
        return found
    for match in re.finditer(r"^[ \t]*ExecStart=[@:+!-]*(\S*earlyoom)\b(.*(?:\\\n.*)*)$", text, re.MULTILINE):
        found = match[2].replace("\\\n", " ").replace(f"${_VARIABLE}", "").strip()
    if found is not None:
        return found
    stripped = text.strip()
    return stripped if stripped.startswith("-") else None


def read_environment_value(text: str) -> str:
    r"""The value after ``NAME=`` as systemd's EnvironmentFile= reads it, up to the end of the assignment.

    Quotes count at the start of the value and after a quoted part; elsewhere they are characters like any other. In
    double quotes a backslash protects ``" \\ ` $`` and the end of the line, outside of quotes any character.
    """
    value: list[str] = []
    quote = ""
    is_start = True
    characters = iter(text)
    for char in characters:
        if quote:
            if char == quote:
                quote, is_start = "", True
            elif char == "\\" and quote == '"':
                after = next(characters, "")
                value.append(after if after in '"\\`$' else "" if after == "\n" else "\\" + after)
            else:
                value.append(char)
        elif char == "\n":
            break
        elif is_start and char in "'\"":
            quote = char
        elif char == "\\":
            after = next(characters, "")
            value.append("" if after == "\n" else after)
            is_start = False
        elif not is_start or char not in " \t":
            is_start = False
            value.append(char)
    return "".join(value).strip()


def _split(draft: Draft, value: str, file: str) -> list[str]:
    """The value as arguments; quotes are respected, as the shell and a recent systemd do."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        draft.leave(
            f"the quotes in {_VARIABLE}",
            f"one of them is not closed ({error}), so the value was split at each blank in {file}",
            "look at each pattern below",
        )
        words = value.split()
    plain = value.split()
    if plain != words and any(mark in value for mark in "'\"\\"):
        draft.leave(
            f"the quotes in {_VARIABLE}",
            "where they are not taken away, they become part of the regular expression, which then matches nothing: "
            f"earlyoom may have been started with {' '.join(_quoted_words(plain))} (its issue 380)",
            "nothing; they are taken as quotes here, so what was meant holds now. Look at the patterns all the same",
        )
    return words


def _quoted_words(words: list[str]) -> list[str]:
    return [f"<{word}>" for word in words if any(mark in word for mark in "'\"\\")]


# -- the arguments -----------------------------------------------------------------------------------------


def _turn(draft: Draft, words: list[str], file: str) -> None:
    limits = {option: _Limit() for option in ("-m", "-s", "-M", "-S")}
    given: dict[str, str] = {}
    for option, argument in _parse(words, file):
        if option in limits:
            if limits[option].read(argument):
                given[option] = argument
            else:
                draft.leave(f"{option} {argument}", "it is no number, nor two with a comma; earlyoom refuses it too")
        elif option in _PATTERNS:
            _carry_pattern(draft, option, argument)
        elif option == "--ignore-root-user":
            draft.add_matcher("never", {"user": "root"})
            draft.carry(option, 'victims.never: {user = "root"}')
        elif option == "-g":
            draft.set("victims", "unit", "group")
            draft.carry(option, 'victims.unit = "group"', "what must not die is protected in a group, too")
        elif option == "--sort-by-rss":
            draft.carry(option, "nothing to set", "victims are always chosen by the memory that they give back")
        elif option in ("-N", "-P"):
            _carry_hook(draft, option, argument)
        else:
            reason, instead = _NEEDLESS[option]
            draft.leave(f"{option} {argument}".strip(), reason, instead)
    _add_rules(draft, limits, given)


def _parse(words: list[str], file: str) -> list[tuple[str, str]]:
    try:
        pairs, rest = getopt.gnu_getopt(words, _SHORT, list(_LONG))
    except getopt.GetoptError as error:
        raise ConfigError(
            (Fault(show_text(file), _VARIABLE, None, show_text(str(error)), "earlyoom's options"),)
        ) from error
    if rest:
        found = f"found {show_text(' '.join(rest))}, which belongs to no option"
        raise ConfigError((Fault(show_text(file), _VARIABLE, None, found, "earlyoom refuses it too"),))
    return pairs


def _carry_pattern(draft: Draft, option: str, argument: str) -> None:
    pattern = argument
    note = {
        "--prefer": "earlyoom adds 300 points whatever the size; here it must be worth it, too",
        "--avoid": "earlyoom takes 300 points off; here it is killed only when there is nobody else",
        "--ignore": "",
    }[option]
    stripped = pattern.strip("'\"")
    if stripped != pattern:
        draft.leave(
            f"{option} {argument}",
            f"the quotes were part of earlyoom's regular expression, which so matched nothing; <{stripped}> is taken",
            "nothing, if that is what was meant",
        )
        pattern = stripped
    converted, problem = convert_posix_regex(pattern)
    if problem:
        draft.leave(f"{option} {argument}", problem, f"write it anew under victims.{_PATTERNS[option]}")
        return
    draft.carry_pattern(f"{option} {argument}", _PATTERNS[option], MatchField.COMM, converted, note)


def _carry_hook(draft: Draft, option: str, argument: str) -> None:
    key = "post_kill" if option == "-N" else "pre_kill"
    if not os.path.isabs(argument):
        draft.leave(f"{option} {argument}", "it is no absolute path; earlyoom refuses it too")
        return
    draft.set("hooks", key, [argument])
    note = "the names in its environment differ: EARLYOOM_PID and the like are not set; see oomreaper.toml(5)"
    draft.carry(f"{option} {argument}", f"hooks.{key}", note)


def _add_rules(draft: Draft, limits: dict[str, _Limit], given: dict[str, str]) -> None:
    for option in ("-m", "-s"):
        size = "-M" if option == "-m" else "-S"
        if option not in given and size not in given:
            limits[option].read(show_number(_DEFAULT_PERCENT))
            draft.carry(
                f"{option} (not given)", "the levels of the rules", "earlyoom's default: 10 %, and 5 % for SIGKILL"
            )
    term = _list_conditions(limits, is_kill=False)
    kill = _list_conditions(limits, is_kill=True)
    memory = [text for text in kill if text.startswith("mem_available")]
    # Of per cent and size the lower one counts, and which that is only the machine tells.
    sooner = f" or {memory[0]}" if len(memory) == 1 else ""
    # Without a second level earlyoom never sends SIGKILL, and we leave it so.
    draft.add_rule(name="low", when=term, then=["terminate", *([f"kill after 10s{sooner}"] if memory else [])])
    if memory:
        draft.add_rule(name="critical", when=kill, then=["kill"])
    if len(memory) == 1:
        draft.set("kill", "critical", memory[0])
    for option, argument in given.items():
        note = ""
        if option == "-m":
            note = "earlyoom counts per cent of what is available or in use by programs, we of all memory"
        if option == "-s" and limits[option].term == _ALL_PERCENT:
            note = "at 100 swap does not count, so there is no condition on it"
        draft.carry(f"{option} {argument}", "the levels of the rules", note)
    if memory:
        draft.leave(
            "(built in) SIGKILL by level only",
            "a process that answers SIGTERM by staying would be asked for ever between the two levels (issue 354)",
            "nothing; here it is killed after 10 s, too",
        )


def _list_conditions(limits: dict[str, _Limit], *, is_kill: bool) -> list[str]:
    """The conditions of one level. Per cent and size of the same thing must both hold, so that the lower one counts."""
    conditions = []
    for option, limit in limits.items():
        level = limit.kill if is_kill else limit.term
        metric = "mem_available" if option in ("-m", "-M") else "swap_free"
        if level is None or (option == "-s" and limit.term == _ALL_PERCENT):
            continue
        if level == 0:
            if metric == "mem_available":
                return []
            continue
        if option in ("-m", "-s"):
            conditions.append(f"{metric} < {show_number(level)}%")
        else:
            conditions.append(f"{metric} < {show_number(level)}K")
    return conditions
