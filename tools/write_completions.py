"""Write packaging/completions from the parser of the code (``make docs``): bash and zsh by shtab, fish by ourselves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import shtab

from oomreaper.faces.cli import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    # By shell: the function that completes, or such functions by the kind of value.
    _Hint = Mapping[str, str | dict[str, str]]

DIRECTORY = Path(__file__).resolve().parent.parent / "packaging" / "completions"

# What stands for a value in the manual says what completes it.
_FILES = ("FILE", "PATH", "SOCKET")
_DIRECTORIES = ("DIRECTORY",)
_PIDS = ("PID",)
_COMPLETE_PIDS: _Hint = {"bash": "_oomreaper_pids", "zsh": "_pids"}
# Pids from /proc with nothing but the shell; a name of a hostile process never reaches the line.
_BASH_PREAMBLE = """\
_oomreaper_pids() {
  local directory pids=()
  for directory in /proc/[0-9]*; do pids+=("${directory#/proc/}"); done
  compgen -W "${pids[*]}" -- "$1"
}
"""


def render() -> dict[str, str]:
    """Each file's text, by its name: the names under which the shells look for them."""
    return {
        "oomreaper.bash": shtab.complete_bash(_hinted_parser(), preamble=_BASH_PREAMBLE) + "\n",
        "_oomreaper": shtab.complete_zsh(_hinted_parser()) + "\n",
        "oomreaper.fish": "\n".join(_render_fish(build_parser())) + "\n",
    }


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to its own arguments
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            return dict(action.choices)
    return {}


def _hinted_parser() -> argparse.ArgumentParser:
    parser = build_parser()
    for each in (parser, *commands_of(parser).values()):
        for action in each._actions:  # noqa: SLF001 - no public way
            hint = _hint_of(action)
            if hint is not None:
                action.complete = hint  # type: ignore[attr-defined] # how shtab is told
    return parser


def _hint_of(action: argparse.Action) -> _Hint | None:
    if action.metavar in _FILES:
        return shtab.FILE
    if action.metavar in _DIRECTORIES:
        return shtab.DIRECTORY
    return _COMPLETE_PIDS if action.metavar in _PIDS else None


# -- fish: declarations only, so a generator is a page ------------------------------------------------------------


def _render_fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "# Written by tools/write_completions.py from the parser: make docs"
    yield "complete -c oomreaper -f"
    yield from _fish_options(parser, "__fish_use_subcommand")
    commands = commands_of(parser)
    help_by_name = _help_of_commands(parser)
    for name, command in commands.items():
        help_text = _quote(help_by_name.get(name, ""))
        yield f"complete -c oomreaper -n __fish_use_subcommand -a {name} -d {help_text}"
        yield from _fish_options(command, f"__fish_seen_subcommand_from {name}")


def _fish_options(parser: argparse.ArgumentParser, condition: str) -> Iterator[str]:
    start = f"complete -c oomreaper -n {_quote(condition)}"
    for action in parser._actions:  # noqa: SLF001 - no public way
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            continue
        names = "".join(
            f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in action.option_strings
        )
        values = _fish_values(action)
        if names:
            yield f"{start}{names}{values} -d {_quote(_first_clause(parser, action))}"
        elif values:
            yield f"{start}{values.replace(' -x', '').replace(' -r', '')}"


def _fish_values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return f" -x -a {_quote(' '.join(map(str, action.choices)))}"
    if action.metavar in _FILES:
        return " -r -F"
    if action.metavar in _DIRECTORIES:
        return " -x -a '(__fish_complete_directories)'"
    return " -x -a '(__fish_complete_pids)'" if action.metavar in _PIDS else " -x"


def _help_of_commands(parser: argparse.ArgumentParser) -> dict[str, str]:
    for action in parser._actions:  # noqa: SLF001 - no public way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            return {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 - the same
    return {}


def _first_clause(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """A screen of completions has room for no more of a help text."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""  # noqa: SLF001 - no public way
    return text.split(";")[0].split(" (")[0]


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def main() -> None:
    """Write them."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
