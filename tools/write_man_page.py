"""Write docs/man/oomreaper.1 and oomreaper-reap.1 from the parser and the tables of the code (``make docs``)."""

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

_FOLDER = Path(__file__).resolve().parent.parent / "docs" / "man"

_REAP_NOTES = """\
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

_REAP_EXAMPLES = """\
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

_NOTES = """\
.B oomreaper run
waits for hints of the kernel (memory pressure, events of control groups) and looks at the numbers by itself, the
sooner the faster memory falls. A rule that holds has its steps taken one after the other: warn, reclaim, terminate,
kill. One victim is taken at a time; after it the watcher waits for the memory, not for the death, and reads the numbers
again before it takes another.
.PP
The victim is who gives back most, and who grew: shared memory and page cache do not count. oom_score_adj shifts that
within bounds, so that a small process with a high value does not die before a large one; \\-1000 means never. Where a
control group has a limit of its own, a shortage at that limit is handled inside the group.
.PP
What it does and does not do is told on its event socket, one JSON object a message, and on standard error.
.PP
An ordinary user may run it for his own processes. Other users' are then never chosen.
"""

_EXAMPLES = """\
.TP
.B oomreaper run \\-\\-dry\\-run
Watch with the defaults and say what would be done; signal nobody.
.TP
.B oomreaper check /etc/oomreaper.toml && systemctl reload oomreaper
Put a changed configuration in force.
.TP
.B oomreaper explain
Who would die now and why, who never, and why nothing is done.
.TP
.B oomreaper import earlyoom > oomreaper.toml
Carry the settings of earlyoom over.
"""

_FILES = """\
.TP
.I /etc/oomreaper.toml
The configuration; see
.BR oomreaper.toml (5).
Without it the defaults are in force:
.BR "oomreaper check \\-\\-print\\-defaults" .
.TP
.I /run/oomreaper/events.sock
The event socket of a watcher that root runs; a user's is below
.IR $XDG_RUNTIME_DIR .
"""


def render_main() -> str:
    """oomreaper(1): every command."""
    page = _page(build_parser(), "oomreaper", "watch for a shortage of memory, kill, and get the memory back")
    page.add_section("exit status", ">", _table(EXIT_STATUS))
    page.add_section("notes", ">", _NOTES)
    page.add_section("files", ">", _FILES)
    page.add_section("examples", ">", _EXAMPLES)
    others = ".BR oomreaper-reap (1),\n.BR oomreaper.toml (5),\n.BR oomreaper.service (8),\n.BR process_mrelease (2)"
    page.add_section("see also", ">", others)
    return str(page)


def render_reap() -> str:
    """oomreaper-reap(1)."""
    page = _page(_parser_of("reap"), "oomreaper-reap", "kill a process and free its memory, even when it cannot die")
    page.add_section("outcomes", ">", _table({kind.value: text for kind, text in MEANING.items()}))
    page.add_section("exit status", ">", _table(EXIT_STATUS))
    page.add_section("notes", ">", _REAP_NOTES)
    page.add_section("examples", ">", _REAP_EXAMPLES)
    others = ".BR oomreaper (1),\n.BR process_mrelease (2),\n.BR pidfd_open (2),\n.BR proc (5)"
    page.add_section("see also", ">", others)
    return str(page)


PAGES = {_FOLDER / "oomreaper.1": render_main, _FOLDER / "oomreaper-reap.1": render_reap}


def _page(parser: argparse.ArgumentParser, name: str, description: str) -> Manpage:
    page = Manpage(
        parser,
        {
            "project_name": "oomreaper",
            "version": __version__,
            "manual_title": "oomreaper manual",
            "description": description,
            "date": "2026-11-25",
        },
    )
    page.prog = name
    return page


def _parser_of(command: str) -> argparse.ArgumentParser:
    for action in build_parser()._subparsers._group_actions:  # type: ignore[union-attr] # noqa: SLF001 - no public way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            parser = action.choices[command]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise AssertionError("there are no commands")


def _table(rows: Mapping[str, str]) -> str:
    sentences = ((key, text[0].upper() + text[1:]) for key, text in rows.items())
    return "\n".join(f".TP\n.B {key}\n{text if text.endswith('.') else text + '.'}" for key, text in sentences)


def main() -> None:
    """Write them."""
    _FOLDER.mkdir(exist_ok=True)
    for path, render in PAGES.items():
        path.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
