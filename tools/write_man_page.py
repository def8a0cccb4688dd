"""Write docs/man/oomreaper-reap.1 from the parser and the tables of the code (``make docs``)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

from oomreaper import __version__
from oomreaper.faces.cli import EXIT_STATUS, build_parser
from oomreaper.model.outcome import MEANING

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).resolve().parent.parent / "docs" / "man" / "oomreaper-reap.1"

_NOTES = """\
A victim that cannot die (in uninterruptible sleep, frozen, starved of CPU, parked by a tracer) keeps its memory after
SIGKILL. The reaper calls
.BR process_mrelease (2)
in a worker process right after the signal, ten times, 100 ms apart, and believes the memory rather than the return
code: the sum of RssAnon and VmSwap while the address space is there, what is charged afterwards.
.PP
One case cannot be won: a thread of the victim sleeps uninterruptibly while it holds mmap_lock for writing. The victim
is given up after about one second, with where its threads stand; other victims are served meanwhile.
.PP
Processes that share the victim's memory (CLONE_VM, vfork) are killed with it, and listed. Shared memory, files in a
tmpfs, huge pages of hugetlbfs and page cache cannot be reaped.
.PP
Without CAP_SYS_NICE and CAP_IPC_LOCK the job is done without real-time priority and without locked memory.
.B oomreaper doctor
says what is permitted and what is lost without it.
.PP
Never signalled: pid 1 and below, kernel threads, oomreaper itself and whom it descends from, the leader of its group
or session, processes with oom_score_adj \\-1000, and whoever shares memory with one of these.
"""

_EXAMPLES = """\
.TP
.B oomreaper reap 4711
Kill process 4711 and free its memory.
.TP
.B oomreaper reap \\-\\-dry\\-run \\-\\-json 4711 4712
Say what would be done, as JSON lines; signal nobody.
.TP
.B oomreaper reap 4711:83527
Only if the process that holds pid 4711 started at clock tick 83527 (field 22 of
.IR /proc/4711/stat ).
"""


def render() -> str:
    """The page."""
    page = Manpage(
        _reap_parser(),
        {
            "project_name": "oomreaper",
            "version": __version__,
            "manual_title": "oomreaper manual",
            "description": "kill a process and free its memory, even when it cannot die",
            "date": "2026-11-23",
        },
    )
    page.prog = "oomreaper-reap"
    page.add_section("outcomes", ">", _table({kind.value: text for kind, text in MEANING.items()}))
    page.add_section("exit status", ">", _table(EXIT_STATUS))
    page.add_section("notes", ">", _NOTES)
    page.add_section("examples", ">", _EXAMPLES)
    page.add_section("see also", ">", ".BR process_mrelease (2),\n.BR pidfd_open (2),\n.BR proc (5)")
    return str(page)


def _reap_parser() -> argparse.ArgumentParser:
    for action in build_parser()._subparsers._group_actions:  # type: ignore[union-attr] # noqa: SLF001 - no public way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            parser = action.choices["reap"]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise AssertionError("there is no command reap")


def _table(rows: Mapping[str, str]) -> str:
    sentences = ((key, text[0].upper() + text[1:]) for key, text in rows.items())
    return "\n".join(f".TP\n.B {key}\n{text if text.endswith('.') else text + '.'}" for key, text in sentences)


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
