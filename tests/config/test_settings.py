"""The table of settings is whole: nothing is undocumented, and what is documented is so."""

from __future__ import annotations

import tomllib

import pytest

from oomreaper.config.compile import read_default_rules, read_trusted
from oomreaper.config.load import load_plan, load_source
from oomreaper.config.settings import MATCHERS, METRIC_MEANINGS, STEP_MEANINGS, TABLES, Setting, Table
from oomreaper.config.source import parse_source
from oomreaper.config.write import write_defaults
from oomreaper.model.plan import Hooks, KillUnit, MatchField, Metric, Plan, StepKind, Victims

SETTINGS = [(table, setting) for table in TABLES for setting in table.settings]


def _named(value: object) -> str:
    return getattr(value, "key", getattr(value, "name", ""))


@pytest.mark.parametrize(("table", "setting"), SETTINGS, ids=_named)
def test_every_setting_is_documented(table: Table, setting: Setting) -> None:
    """A meaning in whole sentences, a default or that it is required, and an example that can be read."""
    assert len(setting.meaning) > 20
    assert setting.meaning.endswith(".")
    assert setting.form.words
    assert setting.is_required or setting.default is not None or setting.key == "name"
    required = "".join(
        f"{other.key} = {other.example}\n" for other in table.settings if other.is_required and other is not setting
    )
    load_source(parse_source(f"{table.header}\n{required}{setting.key} = {setting.example}\n", "x"), config_path=None)


@pytest.mark.parametrize("setting", MATCHERS, ids=_named)
def test_every_matcher_is_documented(setting: Setting) -> None:
    """The keys of a matcher are settings like any other."""
    assert len(setting.meaning) > 20
    text = f"[victims]\nnever = [{{{setting.key} = {setting.example}}}]\n"
    plan, _ = load_source(parse_source(text, "x"), config_path=None)

    ((test,),) = (matcher.tests for matcher in plan.victims.never)
    assert test.field == setting.key.removesuffix("_regex")


def test_every_word_of_the_plan_can_be_written() -> None:
    """Metrics, steps, matcher fields and units of killing: what the plan knows, the file and its page know."""
    fields = {setting.key.removesuffix("_regex") for setting in MATCHERS}

    assert set(METRIC_MEANINGS) == set(Metric)
    assert set(STEP_MEANINGS) == set(StepKind)
    assert {field.value for field in MatchField} == fields
    unit = next(setting for _, setting in SETTINGS if setting.key == "unit")
    assert all(f'"{kind}"' in unit.form.words for kind in KillUnit)


def test_keys_are_unique() -> None:
    """In each table, and the tables themselves."""
    for names in ([table.name for table in TABLES], *([item.key for item in table.settings] for table in TABLES)):
        assert len(names) == len(set(names))


def test_the_defaults_are_those_of_the_model() -> None:
    """A plan that is made in a test, or by the library, behaves as one that was read."""
    plan, _ = load_plan(None)

    bare = Plan(rules=plan.rules, victims=Victims(), critical=plan.critical, events_path=plan.events_path)
    assert bare == plan
    assert Hooks() == plan.hooks


def test_the_printed_defaults_are_the_defaults() -> None:
    """``check --print-defaults`` is a settings file that changes nothing, and has every setting in it."""
    text = write_defaults()
    plan, advice = load_source(parse_source(text, "x"), config_path=None)

    assert load_plan(None)[0] == plan
    assert advice == ()
    document = tomllib.loads(text)
    for table in TABLES:
        if not table.is_array:
            assert [setting.key for setting in table.settings] == list(document[table.name])
    assert max(map(len, text.splitlines())) <= 100


def test_the_default_rules_say_what_they_are_to_say() -> None:
    """Nobody is killed while there is both memory and swap; who can be asked is asked first; a rate only warns."""
    plan, _ = load_plan(None)
    rules = {rule.name: rule for rule in plan.rules}

    assert list(rules) == ["low", "critical", "thrashing", "forecast", "group"]
    for name in ("low", "critical", "group"):
        assert [condition.metric for condition in rules[name].when] == [Metric.MEM_AVAILABLE, Metric.SWAP_FREE]
    assert [step.kind for step in rules["low"].then] == [StepKind.TERMINATE, StepKind.KILL]
    assert [step.kind for step in rules["forecast"].then] == [StepKind.WARN]
    assert (rules["group"].scope, rules["thrashing"].for_ns) == ("*", 10_000_000_000)
    assert len(read_default_rules()) == len(rules)


def test_a_default_is_read_as_a_users_value_is() -> None:
    """There is one reader for both, so a default cannot be what a user may not write."""
    for _, setting in SETTINGS:
        if setting.default is not None:
            read_trusted(setting.form, setting.default)
