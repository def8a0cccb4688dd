"""``oomreaper check`` and ``oomreaper import``: settings on the screen, as JSON, and the peers' as a file of ours.

What is in a file is somebody else's text: only printable characters of it reach a terminal. There is no colour. Faults
and what could not be carried over go to standard error, what was asked for to standard output.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING

from oomreaper.config.load import find_config, load_plan
from oomreaper.config.values import show_duration, show_text
from oomreaper.config.write import write_defaults
from oomreaper.errors import ConfigError
from oomreaper.model.plan import MACHINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.config.advice import Advice
    from oomreaper.config.importers.report import Imported
    from oomreaper.model.plan import Matcher, Plan, Rule

_EXIT_OK = 0
_INDENT = "  "
# Below that no sentence can be read any more, and we rather let the terminal break the lines.
_LEAST_WIDTH = 30
_MATCHERS_SHOWN = 8  # of each list; a file with more is read better in an editor, and --json has all


def run_check(path: str | None, *, as_json: bool, print_defaults: bool) -> int:
    """Check a settings file (or the one that would be found, or the defaults) and show what it comes to.

    Returns:
        0 when it can be used, 2 when not.
    """
    if print_defaults:
        print(write_defaults(), end="")
        return _EXIT_OK
    path = find_config() if path is None else path
    try:
        plan, advice = load_plan(path)
    except ConfigError as error:
        _print_faults(error, as_json=as_json)
        return error.exit_status
    if as_json:
        for line in render_check_json(plan, advice):
            print(line)
    else:
        print(render_check(plan, advice, width=_terminal_width()))
    return _EXIT_OK


def run_import(peer: str, path: str | None, *, as_json: bool) -> int:
    """Print a peer's settings as a file of ours, and name each one that could not be carried over.

    Returns:
        0 when there is a file to use, 2 when the peer's could not be read.
    """
    from oomreaper.config.importers.peers import import_settings
    from oomreaper.config.importers.report import render_left, render_toml

    try:
        imported = import_settings(peer, path)
    except ConfigError as error:
        _print_faults(error, as_json=as_json)
        return error.exit_status
    if as_json:
        for line in render_import_json(imported):
            print(line)
        return _EXIT_OK
    print(render_toml(imported), end="")
    for line in render_left(imported):
        print(f"oomreaper: {line}", file=sys.stderr)
    return _EXIT_OK


def _print_faults(error: ConfigError, *, as_json: bool) -> None:
    for fault in error.faults:
        if as_json:
            print(json.dumps({"kind": "fault", **fault._asdict()}))
        else:
            print(f"oomreaper: {fault.text}", file=sys.stderr)
    if not as_json:
        number = len(error.faults)
        print(f"oomreaper: {number} fault{'s' if number > 1 else ''}; nothing was changed", file=sys.stderr)


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


# -- check -------------------------------------------------------------------------------------------------


def render_check_json(plan: Plan, advice: tuple[Advice, ...]) -> Iterator[str]:
    """One JSON object a line: each warning, then the plan, field by field, as the watcher gets it."""
    from oomreaper.watch.plan import encode_plan

    for item in advice:
        yield json.dumps({"kind": "warning", **item._asdict()})
    yield json.dumps({"kind": "plan", **json.loads(encode_plan(plan))})


def render_check(plan: Plan, advice: tuple[Advice, ...], *, width: int) -> str:
    """The plan in a screenful, warnings first."""
    columns = max(width, _LEAST_WIDTH)
    source = "no settings file: the defaults" if plan.config_path is None else f"{plan.config_path}: it can be used"
    lines = [source, *(str(item) for item in advice)]
    for rule in plan.rules:
        lines += _describe_rule(rule)
    lines += _describe_victims(plan)
    dump = "finished within the time-out" if plan.spare_dump else "cut short"
    lines.append(
        f"kill: {plan.attempts} attempts of {show_duration(plan.attempt_ns)}, at most "
        f"{show_duration(plan.timeout_ns)} a victim; several at once while {plan.critical.text}; core dumps are {dump}"
    )
    for name, command, timeout_ns in (
        ("pre_kill", plan.hooks.pre_kill, plan.hooks.pre_kill_timeout_ns),
        ("post_kill", plan.hooks.post_kill, plan.hooks.post_kill_timeout_ns),
    ):
        if command:
            lines.append(f"hook {name}: {' '.join(command)} (at most {show_duration(timeout_ns)})")
    if plan.within is not None:
        lines.append(f"within: {plan.within}")
    lines.append(f"events: {plan.events_path or 'no socket'}")
    return "\n".join(row for line in lines for row in _wrap(line, columns))


def _describe_rule(rule: Rule) -> Iterator[str]:
    scope = "" if rule.scope == MACHINE else f" in groups {rule.scope}"
    yield f"rule {rule.name}{scope}:"
    lasting = f" for {show_duration(rule.for_ns)}" if rule.for_ns else ""
    yield f"{_INDENT}when {' and '.join(condition.text for condition in rule.when)}{lasting}"
    yield f"{_INDENT}then {', '.join(step.text for step in rule.then)}"
    if rule.recovered:
        yield f"{_INDENT}until {' and '.join(condition.text for condition in rule.recovered)}"


def _describe_victims(plan: Plan) -> Iterator[str]:
    victims = plan.victims
    honoured = [
        text
        for text, is_honoured in (
            ("memory.oom.group", victims.honour_oom_group),
            ("user.oomd_avoid and user.oomd_omit", victims.honour_xattrs),
        )
        if is_honoured
    ]
    yield (
        f"victims: unit {victims.unit.value}, from {victims.smallest_percent:g} % of memory up"
        + (f"; {', '.join(honoured)} honoured" if honoured else "")
    )
    for name, matchers in (("never", victims.never), ("avoid", victims.avoid), ("prefer", victims.prefer)):
        for matcher in matchers[:_MATCHERS_SHOWN]:
            yield f"{_INDENT}{name} {_describe_matcher(matcher)}"
        if len(matchers) > _MATCHERS_SHOWN:
            yield f"{_INDENT}{name} {len(matchers) - _MATCHERS_SHOWN} more (--json has all)"


def _describe_matcher(matcher: Matcher) -> str:
    return " and ".join(test.text for test in matcher.tests)


def _wrap(line: str, columns: int) -> list[str]:
    """A line as rows that fit, in ASCII, indented as it was and a little more."""
    indent = line[: len(line) - len(line.lstrip())]
    safe = show_text(line.strip()).encode("ascii", "backslashreplace").decode("ascii")
    return textwrap.wrap(
        safe, columns, initial_indent=indent, subsequent_indent=indent + _INDENT, break_on_hyphens=False
    ) or [""]


# -- import ------------------------------------------------------------------------------------------------


def render_import_json(imported: Imported) -> Iterator[str]:
    """One JSON object a line: what was carried over, what was not, then the file as text."""
    from oomreaper.config.importers.report import render_toml

    for carried in imported.carried:
        yield json.dumps({"kind": "carried", **carried._asdict()})
    for left in imported.left:
        yield json.dumps({"kind": "left", **left._asdict()})
    yield json.dumps(
        {"kind": "file", "peer": imported.peer, "sources": list(imported.sources), "toml": render_toml(imported)}
    )
