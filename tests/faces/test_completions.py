"""Completions of the shells: they are made from the parser, and a real bash completes with them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess

import pytest

from oomreaper.faces.cli import build_parser
from tools.write_completions import DIRECTORY, commands_of, render

BASH_FILE = DIRECTORY / "oomreaper.bash"
FILE_BY_SHELL = {"bash": "oomreaper.bash", "zsh": "_oomreaper", "fish": "oomreaper.fish"}
COMMANDS = sorted(commands_of(build_parser()))
# What a completing bash does: the words so far, the function that `complete` has named, and its answers.
_DRIVER = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
definition=$(complete -p oomreaper)
[[ $definition =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")


def _complete(*words: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", _DRIVER, "bash", str(BASH_FILE), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _long_options(command: str) -> list[str]:
    parser = commands_of(build_parser())[command]
    return sorted(name for name, action in parser._option_string_actions.items() if _is_offered(name, action))


def _is_offered(name: str, action: argparse.Action) -> bool:
    """A long option that the help shows; what is kept from the help is for our own use."""
    return name.startswith("--") and action.help != argparse.SUPPRESS


@pytest.mark.parametrize("name", sorted(render()))
def test_the_files_are_what_the_parser_generates(name: str) -> None:
    """packaging/completions cannot drift from the command line."""
    assert render()[name] == (DIRECTORY / name).read_text(encoding="utf-8"), "run: make docs"


@pytest.mark.parametrize("shell", [shell for shell in FILE_BY_SHELL if shutil.which(shell)])
def test_each_shell_that_is_here_takes_its_file(shell: str) -> None:
    """``-n`` parses without running."""
    path = DIRECTORY / FILE_BY_SHELL[shell]

    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, done.stderr) == (0, "")


@needs_bash
def test_bash_completes_each_command() -> None:
    """``oomreaper <TAB>`` offers them all, and the whole name but one letter has one answer among commands."""
    assert sorted(set(_complete("oomreaper", ""))) == COMMANDS
    for command in COMMANDS:
        assert command in _complete("oomreaper", command[:-1])
    assert _complete("oomreaper", "rea") == ["reap"]


@needs_bash
@pytest.mark.parametrize("command", COMMANDS)
def test_bash_completes_the_options_of_each_command(command: str) -> None:
    """``oomreaper COMMAND --<TAB>`` offers that command's options, and no other's."""
    assert sorted(_complete("oomreaper", command, "--")) == _long_options(command)


@needs_bash
def test_bash_completes_a_choice_and_a_pid() -> None:
    """The values of --coredump, and for reap the pids that there are."""
    pid = str(os.getpid())

    assert sorted(_complete("oomreaper", "reap", "--coredump", "")) == ["abort", "wait"]
    assert pid in _complete("oomreaper", "reap", pid)
    assert pid in _complete("oomreaper", "reap", "--json", pid[:-1])


@needs_bash
def test_bash_completes_files_where_a_file_is_meant() -> None:
    """Each option whose value is called FILE offers files."""
    found = [
        (command, option)
        for command, parser in commands_of(build_parser()).items()
        for option, action in parser._option_string_actions.items()
        if action.metavar == "FILE" and option.startswith("--")
    ]
    for command, option in found:
        assert str(BASH_FILE) in _complete("oomreaper", command, option, str(BASH_FILE)[:-2]), (command, option)


@pytest.mark.parametrize("name", ["_oomreaper", "oomreaper.fish"])
def test_the_other_shells_files_name_every_command_and_option(name: str) -> None:
    """zsh and fish may not be here to ask; what they would offer is in their files."""
    text = (DIRECTORY / name).read_text(encoding="utf-8")

    for command, parser in commands_of(build_parser()).items():
        assert command in text
        for action in parser._actions:
            for option in action.option_strings:
                if _is_offered(option, action):
                    assert option.removeprefix("--") in text, (command, option)


def test_zsh_finds_its_function() -> None:
    """The first line is how compinit learns what the file completes."""
    first = (DIRECTORY / "_oomreaper").read_text(encoding="utf-8").splitlines()[0]

    assert first == "#compdef oomreaper"


def test_the_hints_know_what_stands_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """FILE, DIRECTORY and PID as metavar are completed as such, in bash, zsh and fish."""
    parser = argparse.ArgumentParser(prog="oomreaper")
    commands = parser.add_subparsers()
    run = commands.add_parser("run", help="100 %% of what's there (default: %(prog)s)")
    run.add_argument("--config", metavar="FILE", help="the user's file")
    run.add_argument("--root", metavar="DIRECTORY")
    run.add_argument("--pid", metavar="PID", help=argparse.SUPPRESS)
    run.add_argument("targets", metavar="PID")
    monkeypatch.setattr("tools.write_completions.build_parser", lambda: parser)

    files = render()

    assert "_shtab_oomreaper_run___config_COMPGEN=_shtab_compgen_files" in files["oomreaper.bash"]
    assert "_shtab_oomreaper_run___root_COMPGEN=_shtab_compgen_dirs" in files["oomreaper.bash"]
    assert "_shtab_oomreaper_run_pos_0_COMPGEN=_oomreaper_pids" in files["oomreaper.bash"]
    assert ":_files" in files["_oomreaper"]
    assert ":_pids" in files["_oomreaper"]
    assert "-l config -r -F -d 'the user\\'s file'" in files["oomreaper.fish"]
    assert "(__fish_complete_directories)" in files["oomreaper.fish"]
    assert "-l pid" not in files["oomreaper.fish"]
