"""Running the command as a user does, and reading its records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.interpreters import SOURCE, find_python_for_everybody, find_source_for_everybody

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND = (sys.executable, "-m", "oomreaper")
# Every run here takes a second or two; a fixture lets go of its victim after less than a minute.
_LIMIT_SECONDS = 50


class Run(NamedTuple):
    """What a run of the command came to."""

    status: int
    records: list[dict[str, Any]]
    errors: str

    @property
    def record(self) -> dict[str, Any]:
        """The only record."""
        (record,) = self.records
        return record


def reap_command(*arguments: object, user: int | None = None) -> list[str]:
    """``oomreaper reap --json ARGUMENTS``, with an interpreter that ``user`` may start."""
    python = sys.executable if user is None else find_python_for_everybody()
    assert python is not None, "the test must need python_for_everybody"
    return [python, "-m", "oomreaper", "reap", "--json", *map(str, arguments)]


def reap(*arguments: object, prefix: Sequence[str] = (), user: int | None = None) -> Run:
    """Run it behind ``prefix`` (a wrapper) and as ``user`` (a uid) where given."""
    source = str(SOURCE) if user is None else find_source_for_everybody()
    done = subprocess.run(
        [*prefix, *reap_command(*arguments, user=user)],
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return Run(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)
