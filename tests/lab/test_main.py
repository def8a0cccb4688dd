"""The lab's command line."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

import pytest

from lab import __main__ as command
from lab.packages import LabError
from lab.seam import GuestLostError
from oomreaper.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("name", ["build", "run", "smoke", "suite", "time", "report"])
def test_every_command_is_there(name: str) -> None:
    """Each is understood without any option, and does something."""
    arguments = command.build_parser().parse_args([name])

    assert callable(arguments.do)


@pytest.mark.parametrize("argv", [[], ["explode"], ["build", "--kernel", "2.4"], ["run", "--repeats", "few"]])
def test_what_makes_no_sense_is_usage(argv: list[str]) -> None:
    """Status 2, and nothing is done."""
    with pytest.raises(SystemExit) as ended:
        command.main(argv)

    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (LabError("no qemu"), 3),
        (GuestLostError("panic"), 1),
        (UsageError("no scenario"), 2),
        (KeyboardInterrupt(), 130),
        (command._TerminatedError(), 143),
    ],
)
def test_each_end_has_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException, status: int
) -> None:
    """As the module's header has them; what is no interruption is told."""

    def fail(_arguments: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(command, "build_parser", lambda: _parser_that_does(fail))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    assert command.main([]) == status
    assert str(raised) in capsys.readouterr().err


def _parser_that_does(do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.set_defaults(do=do)
    return parser
