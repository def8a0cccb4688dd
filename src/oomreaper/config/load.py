"""The way from a settings file, or from none, to a plan.

Without a file the defaults are compiled and no library is imported. With one, all its faults come at once, in a
ConfigError; what is allowed but hardly meant comes beside the plan.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from oomreaper.config.advice import Advice, find_advice
from oomreaper.config.compile import compile_plan, name_rule
from oomreaper.config.values import show_path, show_text, show_value
from oomreaper.errors import ConfigError, Fault
from oomreaper.watch.plan import LARGEST_PLAN_BYTES, encode_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from oomreaper.config.source import Source
    from oomreaper.model.plan import Plan

_ROOT_FILE = "/etc/oomreaper.toml"
_USER_FILE = "oomreaper.toml"


def find_config(
    *, environment: Mapping[str, str] | None = None, uid: int | None = None, root_file: str = _ROOT_FILE
) -> str | None:
    """The settings file that is read when none is named; None: there is none, and the defaults hold.

    For root it is /etc/oomreaper.toml, and never one that a user's environment names; for others it is oomreaper.toml
    in $XDG_CONFIG_HOME (or ~/.config). A file that is there but cannot be read is found: to pass over it would be to
    run without the protection that it asks for.
    """
    environment = os.environ if environment is None else environment
    if (os.geteuid() if uid is None else uid) == 0:
        path = root_file
    else:
        directory = environment.get("XDG_CONFIG_HOME", "")
        if not directory.startswith("/"):  # the specification: relative ones are to be ignored
            home = environment.get("HOME", "")
            if not home.startswith("/"):
                return None
            directory = f"{home.rstrip('/')}/.config"
        path = f"{directory.rstrip('/')}/{_USER_FILE}"
    return path if os.path.lexists(path) else None


def load_plan(path: str | None) -> tuple[Plan, tuple[Advice, ...]]:
    """Read a settings file.

    Args:
        path: The file; None for the defaults.

    Returns:
        The plan, and what is allowed in it but hardly meant.

    Raises:
        ConfigError: The file cannot be read, or has faults; all of them are in it.
    """
    if path is None:
        return compile_plan({}), ()
    from oomreaper.config.source import read_source

    return load_source(read_source(path), config_path=os.path.abspath(path))


def load_source(source: Source, *, config_path: str | None) -> tuple[Plan, tuple[Advice, ...]]:
    """The same of a file that was read already.

    Raises:
        ConfigError: It has faults.
    """
    check_document = _import_check()
    read, faults = check_document(source.document, source.file, source.find_line)
    faults += _find_faults_between(source)
    if faults:
        raise ConfigError(tuple(sorted(faults, key=lambda fault: fault.line or 0)))
    plan = compile_plan(read, config_path=config_path)
    if len(encode_plan(plan)) > LARGEST_PLAN_BYTES:
        fault = Fault(source.file, "", None, "its rules and matchers are too many", "the watcher keeps them in memory")
        raise ConfigError((fault,))
    advice = find_advice(plan, others_may_write=source.others_may_write)
    return plan, tuple(
        Advice(source.file, show_path(place), source.find_line(place, None), text) for place, text in advice
    )


def _import_check() -> Callable[..., tuple[dict[str, Any], tuple[Fault, ...]]]:
    try:
        # Third-party: not for those who run on the defaults.
        from oomreaper.config.schema import check_document
    except ModuleNotFoundError as error:
        if error.name != "voluptuous":
            raise
        needed = "to check it the Python library voluptuous is needed: pip install voluptuous (or python3-voluptuous)"
        raise ConfigError((Fault("a settings file was given", "", None, needed, ""),)) from error
    return check_document


def _find_faults_between(source: Source) -> tuple[Fault, ...]:
    """What no single value shows: names that are given twice, and hooks without a program."""
    faults = []
    positions: dict[str, int] = {}
    for position, name in _names_of_rules(source.document):
        first = positions.setdefault(name, position)
        if first != position:
            line = source.find_line(("rule", position, "name"), name)
            found = f'found "{show_text(name)}", which rule[{first}] is called already'
            faults.append(Fault(source.file, f"rule[{position}].name", line, found, "each rule has a name of its own"))
    hooks = source.document.get("hooks")
    for key in ("pre_kill", "post_kill"):
        command = hooks.get(key) if isinstance(hooks, dict) else None
        program = command[0] if isinstance(command, list) and command else "/"
        if isinstance(program, str) and not program.startswith("/"):
            line = source.find_line(("hooks", key, 0), program)
            allowed = "allowed is the absolute path of a program"
            faults.append(Fault(source.file, f"hooks.{key}[0]", line, f"found {show_value(program)}", allowed))
    return tuple(faults)


def _names_of_rules(document: Mapping[str, object]) -> Iterator[tuple[int, str]]:
    rules = document.get("rule")
    for position, rule in enumerate(rules if isinstance(rules, list) else ()):
        if isinstance(rule, dict):
            name = rule.get("name", name_rule(position + 1))
            if isinstance(name, str):
                yield position, name
