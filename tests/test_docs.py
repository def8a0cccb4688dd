"""What the documents state is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oomreaper.faces.cli import EXIT_STATUS, build_parser
from oomreaper.model.outcome import MEANING
from oomreaper.reaper.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_the_manual_pages_are_what_the_code_generates() -> None:
    """docs/man/oomreaper.1 and oomreaper-reap.1 are made from the parser and the tables; they cannot drift."""
    from tools.write_man_page import PAGES as MAN_PAGES

    for path, render in MAN_PAGES.items():
        assert render() == path.read_text(encoding="utf-8"), "run: make docs"


def test_the_readme_has_the_contract_s_outcomes() -> None:
    """The README's table is the code's, row by row."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))

    assert {kind.value: text for kind, text in MEANING.items()} == rows


def test_the_readme_s_figure_is_the_measured_one() -> None:
    """The README's table is made from bench/results/latest.json; it cannot claim anything else."""
    from tools.readme_figure import README, readme_with_figure

    text = README.read_text(encoding="utf-8")

    assert text == readme_with_figure(text), "run: make docs"
    assert "oomreaper`: kill to memory" in text


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    """Each status that an error class carries has its row in the manual."""
    from oomreaper.errors import BrokenPromiseError, KernelError, UsageError

    for kind in (UsageError, KernelError, BrokenPromiseError):
        assert str(kind.exit_status) in EXIT_STATUS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    """No page points to a file that is not there."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|src|bench|tools|docs)/[\w./-]+\.(?:py|sh|c|md|1))`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    """A page that says which test shows a thing names a test that there is."""
    everything = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in everything, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_and_options_exist(page: Path) -> None:
    """Every ``make`` target, command and option that a page shows is there."""
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`|^\$ make (\w+)", text, re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile, target
    usage = build_parser().format_help() + "".join(
        subprocess.run(
            [sys.executable, "-m", "oomreaper", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in ("run", "reap", "doctor", "explain", "check", "import", "simulate", "demo")
    )
    for command in re.findall(r"^[$#] oomreaper (\w+)", text, re.MULTILINE):
        assert command in usage, command
    for option in re.findall(r"`(?:oomreaper \w+ )?(--[a-z-]+)", text):
        assert option in usage, option


def test_the_numbers_of_the_founding_commit_are_the_defaults() -> None:
    """Ten attempts, 100 ms apart, two workers and a spare: as the pages say."""
    settings = Settings()

    assert (settings.attempts, settings.attempt_ns, settings.workers, settings.spares) == (10, 100_000_000, 2, 1)
