"""oomreaper.toml(5) is made from the table of settings and says what holds."""

from __future__ import annotations

import shutil
import subprocess

from oomreaper.config.load import load_source
from oomreaper.config.settings import MATCHERS, TABLES
from oomreaper.config.source import parse_source
from oomreaper.model.plan import Metric, StepKind
from tools.write_settings_page import PAGE, example, render


def test_the_settings_page_is_what_the_table_generates() -> None:
    """docs/man/oomreaper.toml.5 cannot drift from the code."""
    assert render() == PAGE.read_text(encoding="utf-8"), "run: make docs"


def test_the_page_has_every_setting() -> None:
    """Each with its key, under its table."""
    page = render()
    for table in TABLES:
        section = page.split(f".SH {table.header}\n")[1].split(".SH")[0]
        for setting in table.settings:
            assert f"\\fB{setting.key}\\fR = " in section
    for setting in MATCHERS:
        assert f"\\fB{setting.key}\\fR = " in page
    for word in (*Metric, *StepKind):
        assert f"\n.B {word.value}\n" in page


def test_the_page_s_example_can_be_used() -> None:
    """It is a settings file without a fault, and without a warning."""
    plan, advice = load_source(parse_source(example(), "example"), config_path=None)

    assert [rule.name for rule in plan.rules] == ["low", "jobs"]
    assert advice == ()


def test_no_line_is_a_request_by_accident() -> None:
    """Only the requests that we write begin with a dot, and none with an apostrophe."""
    known = (".TH ", ".SH ", ".TP", ".B ", ".BR ", ".I ", ".PP", ".br", ".nf", ".fi", ".RS", ".RE")

    for line in render().splitlines():
        assert not line.startswith("'")
        assert not line.startswith(".") or line.startswith(known), line


def test_groff_has_nothing_to_complain_about() -> None:
    """Where groff is installed it formats the page without a warning; elsewhere the page is as it was there."""
    groff = shutil.which("groff")
    if groff is None:
        return
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z"], input=render(), capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
