"""Demos that the tests run: how one is started, what it said, and how it is interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests import seccomp
from tests.interpreters import find_python_for_everybody, find_source_for_everybody

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
SIZE_BYTES = 64 * MIB
_TESTS = str(Path(__file__).parent.parent.parent)
WHOLE = ("-m", "oomreaper", "demo", "--size-mib", "64")
# Without the main act, which takes 4 s.
_SHORTER = """
import sys
from oomreaper.demo import show
from oomreaper.faces import cli
show.ACTS = show.ACTS[1:]
sys.exit(cli.main(["demo", "--size-mib", "64", *sys.argv[1:]]))
"""
SHORTER = ("-c", _SHORTER)
# A demo takes 8 s.
LIMIT_SECONDS = 50


class Played(NamedTuple):
    """A demo that has ended."""

    status: int
    output: str
    errors: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.output.splitlines()]

    def of_act(self, act: str, *, samples: bool = False) -> list[dict[str, Any]]:
        """The records of one act, in order, without the samples unless wanted."""
        records = [record for record in self.records if record.get("act") == act]
        return [record for record in records if samples or record["event"] != "sample"]


def environment_of_demo(**more: str) -> dict[str, str]:
    """What a demo is given: little, so that nothing of this run's shows in it."""
    own = {name: value for name, value in os.environ.items() if name in {"PATH", "TMPDIR", "OOMREAPER_TEST_RUN"}}
    paths = os.pathsep.join((find_source_for_everybody(), _TESTS))
    return {**own, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error", **more}


def play(
    *options: str,
    command: Sequence[str] = SHORTER,
    prefix: Sequence[str] = (),
    user: int | None = None,
    as_everybody: bool = False,
    **environment: str,
) -> Played:
    """Run a demo of 64 MiB to its end, as ``user`` where given.

    ``as_everybody``: with an interpreter that any user may start, since ``prefix`` becomes another one.
    """
    python = sys.executable if user is None and not as_everybody else find_python_for_everybody()
    assert python is not None, "the test must need python_for_everybody"
    done = subprocess.run(
        [*prefix, python, *command, *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT_SECONDS,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
        env=environment_of_demo(**environment),
    )
    return Played(done.returncode, done.stdout, done.stderr)


def sandboxed(*denials: str) -> list[str]:
    """What to put before a command that the kernel should refuse these calls."""
    words = [word for denial in denials for word in ("--deny", denial)]
    return [sys.executable, seccomp.__file__, *words, "--"]


def interrupt(number: int, event: str, act: str | None, *, command: Sequence[str] = SHORTER) -> int:
    """Start a demo, send the signal when it tells of ``event``, and return its status."""
    with subprocess.Popen(
        [sys.executable, *command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment_of_demo(),
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            record = json.loads(line)
            if record["event"] == event and record.get("act") == act:
                demo.send_signal(number)
                break
        _, errors = demo.communicate(timeout=LIMIT_SECONDS)
    assert errors == "", errors  # of a helper: pytest does not show it by itself
    return demo.returncode
