"""Write docs/man/oomreaper.toml.5 from the table of settings (``make docs``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oomreaper import __version__
from oomreaper.config.defaults import RULES
from oomreaper.config.settings import MATCHERS, METRIC_MEANINGS, STEP_MEANINGS, TABLES
from oomreaper.config.write import write_setting, write_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from oomreaper.config.settings import Setting

PAGE = Path(__file__).resolve().parent.parent / "docs" / "man" / "oomreaper.toml.5"
_DATE = "2026-11-25"

_FILES = {
    "/etc/oomreaper.toml": "The settings when root runs oomreaper.",
    "$XDG_CONFIG_HOME/oomreaper.toml": "Those of any other user; ~/.config when the variable is not set.",
}

_INTRODUCTION = """\
The settings of oomreaper, in TOML (toml.io). With no file at all the defaults hold; a file need only say what differs.
'oomreaper check' says whether a file can be used, names everything that is wrong with it at once, and shows what it
comes to; 'oomreaper check --print-defaults' prints all settings with their defaults. A running oomreaper reads its
file again on SIGHUP; if it has a fault, the old settings stay in force.
"""

_CONDITIONS = """\
A condition compares what is measured with a threshold: "mem_available < 4%". In 'when', below is written for what runs
out (mem_available, swap_free, time_to_exhaustion) and above for what piles up; in 'recovered' it is the other way
round. A threshold is per cent, or a size (500M, 2G), or a time (5s); a pressure is averaged over a time
("psi_memory_full > 15% over 2s", from 500ms to 60s; 10s when none is given). Times are written as 100ms, 2s, 5min, 1h.
"""

_STEPS = """\
A step is one of these words, and when it is due: "kill after 10s or mem_available < 2%" is due ten seconds after the
step before it was taken, or as soon as the condition holds. Without 'after' it is due at once.
"""

_MATCHERS = """\
A matcher says which processes are meant: {exe = "/usr/bin/postgres"}. With several keys all of them must match. A
pattern is the whole of what it looks at, with * for any characters, ? for one, and [...] for one of several; case
counts.
"""

_EXAMPLE = """\
[[rule]]
name = "low"
when = ["mem_available < 5%", "swap_free < 10%"]
for = "1s"
recovered = ["mem_available > 8%"]
then = ["warn", "terminate", "kill after 10s or mem_available < 2%"]

[[rule]]
name = "jobs"
scope = "/system.slice/ci-*"
when = ["memory_current > 97% of limit"]
then = ["kill"]

[victims]
never = [{unit = "ssh.service"}, {exe = "/usr/lib/postgresql/*/bin/postgres"}]
prefer = [{cmdline_regex = "--type=renderer"}]
"""


def render() -> str:
    """The page."""
    lines = [
        f'.TH OOMREAPER.TOML 5 "{_DATE}" "oomreaper {__version__}" "oomreaper manual"',
        ".SH NAME",
        r"oomreaper.toml \- settings of oomreaper",
        ".SH SYNOPSIS",
        *_join(rf".I {_roff(path)}" for path in _FILES),
        ".SH DESCRIPTION",
        _flow(_INTRODUCTION),
    ]
    for table in TABLES:
        lines += [f".SH {_roff(table.header)}", _flow(table.meaning)]
        for setting in table.settings:
            lines += _describe(setting)
    lines += [".SH CONDITIONS", _flow(_CONDITIONS), *_list(METRIC_MEANINGS.items())]
    lines += [".SH STEPS", _flow(_STEPS), *_list(STEP_MEANINGS.items())]
    lines += [".SH MATCHERS", _flow(_MATCHERS)]
    for setting in MATCHERS:
        lines += _describe(setting)
    lines += [".SH DEFAULT RULES", "In force when the file has no rule of its own."]
    for rule in RULES:
        lines += [".PP", _flow(rule.why), *_verbatim(["[[rule]]", *_settings_of(rule.table)])]
    lines += [".SH EXAMPLE", *_verbatim(_EXAMPLE.splitlines())]
    lines += [".SH FILES", *_list(_FILES.items())]
    lines += [".SH SEE ALSO", ".BR oomreaper (1),", ".BR oomreaper.service (8)"]
    return "\n".join(lines) + "\n"


def example() -> str:
    """The example of the page; a test reads it as a settings file."""
    return _EXAMPLE


def _describe(setting: Setting) -> Iterator[str]:
    yield ".TP"
    yield rf"\fB{_roff(setting.key)}\fR = {_roff(setting.form.words)}"
    yield _flow(setting.meaning)
    if setting.is_required:
        yield from (".br", "Every rule must have it.")
    elif setting.default is not None:
        yield from (".br", rf"Default: \fB{_roff(write_value(setting.default))}\fR")
    if setting.default is None or write_value(setting.default) != setting.example:
        yield ".br"
        yield rf"Example: \fB{_roff(f'{setting.key} = {setting.example}')}\fR"


def _settings_of(table: dict[str, object]) -> Iterator[str]:
    for key, value in table.items():
        yield from write_setting(key, value)


def _list(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for word, meaning in rows:
        yield from (".TP", f".B {_roff(word)}", _flow(meaning[0].upper() + meaning[1:].rstrip(".") + "."))


def _join(rows: Iterable[str]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield from ((".br", row) if number else (row,))


def _verbatim(rows: Iterable[str]) -> Iterator[str]:
    yield from (".PP", ".nf", ".RS 4", *map(_roff, rows), ".RE", ".fi")


def _flow(text: str) -> str:
    return _roff(" ".join(text.split()))


def _roff(text: str) -> str:
    r"""Text as roff has it: backslashes and minus signs as themselves, and no line that looks like a request."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return rf"\&{safe}" if safe.startswith(".") else safe


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
