"""From values that were read to the plan; and the defaults for what a file does not say.

Knows how the tables of the settings become the fields of the plan, and nothing of files. What changes together with
it: ``settings`` (the keys) and ``model.plan`` (the fields).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from oomreaper.config.defaults import RULES
from oomreaper.config.settings import TABLES, find_table
from oomreaper.model.plan import Hooks, Plan, Rule, Victims

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oomreaper.config.settings import Form, Table

_ROOT_SOCKET = "/run/oomreaper/events.sock"
_USER_SOCKET = "oomreaper/events.sock"


def read_defaults(table: Table) -> dict[str, Any]:
    """The values of a table in which nothing was set; None where there is no default."""
    return {
        setting.key: None if setting.default is None else read_trusted(setting.form, setting.default)
        for setting in table.settings
    }


def read_trusted(form: Form, raw: object) -> object:
    """A value of our own, which has no faults: without the library that looks for them."""
    if not form.is_list:
        return form.read(raw)
    assert isinstance(raw, list)
    return tuple(form.read(element) for element in raw)


def read_default_rules() -> tuple[dict[str, Any], ...]:
    """The default rules, read as a file's would be."""
    table = find_table("rule")
    assert table is not None
    forms = {setting.key: setting.form for setting in table.settings}
    return tuple({key: read_trusted(forms[key], raw) for key, raw in rule.table.items()} for rule in RULES)


def compile_plan(
    read: Mapping[str, Any],
    *,
    config_path: str | None = None,
    environment: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Plan:
    """The plan of a file.

    Args:
        read: Its tables, each value as the plan holds it; tables and keys may be missing.
        config_path: The file.
        environment: Tells a user's runtime directory; the process's own by default.
        uid: Who will watch; the caller by default.
    """
    tables = {
        table.name: {**read_defaults(table), **read.get(table.name, {})} for table in TABLES if not table.is_array
    }
    rule_table = find_table("rule")
    assert rule_table is not None
    rules = read.get("rule") or read_default_rules()
    kill, hooks, watch = tables["kill"], tables["hooks"], tables["watch"]
    return Plan(
        rules=tuple(
            _compile_rule({**read_defaults(rule_table), **rule}, number) for number, rule in enumerate(rules, start=1)
        ),
        victims=_compile_victims(tables["victims"]),
        critical=kill["critical"],
        hooks=Hooks(
            pre_kill=hooks["pre_kill"],
            pre_kill_timeout_ns=hooks["pre_kill_timeout"],
            post_kill=hooks["post_kill"],
            post_kill_timeout_ns=hooks["post_kill_timeout"],
        ),
        within=watch["within"],
        events_path=find_socket(
            watch["events"],
            environment=os.environ if environment is None else environment,
            uid=os.geteuid() if uid is None else uid,
        ),
        attempts=kill["attempts"],
        attempt_ns=kill["attempt"],
        timeout_ns=kill["timeout"],
        spare_dump=kill["coredump"] == "wait",
        config_path=config_path,
    )


def find_socket(wish: str | bool, *, environment: Mapping[str, str], uid: int) -> str | None:  # noqa: FBT001 - a value
    """Where the events go: the path that was named, the usual one for True, None for False or where there is none."""
    if isinstance(wish, str):
        return wish
    if not wish:
        return None
    if uid == 0:
        return _ROOT_SOCKET
    directory = environment.get("XDG_RUNTIME_DIR", "")
    return f"{directory.rstrip('/')}/{_USER_SOCKET}" if directory.startswith("/") else None


def name_rule(number: int) -> str:
    """What a rule without a name is called; ``number`` counts from 1."""
    return f"rule-{number}"


def _compile_rule(read: Mapping[str, Any], number: int) -> Rule:
    return Rule(
        name=read["name"] or name_rule(number),
        scope=read["scope"],
        when=read["when"],
        for_ns=read["for"],
        recovered=read["recovered"],
        then=read["then"],
    )


def _compile_victims(read: Mapping[str, Any]) -> Victims:
    return Victims(
        never=read["never"],
        avoid=read["avoid"],
        prefer=read["prefer"],
        unit=read["unit"],
        smallest_percent=read["smallest"],
        honour_oom_group=read["honour_oom_group"],
        honour_xattrs=read["honour_xattrs"],
    )
