"""What is allowed in a settings file and yet hardly meant is told, with its place; what is meant is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from oomreaper.config.load import load_plan, load_source
from oomreaper.config.source import parse_source

if TYPE_CHECKING:
    from pathlib import Path


def _rule(when: str = '"mem_available < 4%"', then: str = '"kill"', more: str = "") -> str:
    return f"[[rule]]\nwhen = [{when}]\nthen = [{then}]\n{more}"


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        (_rule('"memory_current > 95% of limit"'), "rule[0].when[0]", "can never fire"),
        (_rule('"time_to_exhaustion < 0s"'), "rule[0].when[0]", "can never fire"),
        (_rule('"mem_available < 100%"'), "rule[0].when[0]", "always holds"),
        (_rule(more='recovered = ["mem_available > 3%"]'), "rule[0].recovered[0]", "while the shortage lasts"),
        (_rule(then='"kill", "terminate"'), "rule[0].then[1]", "comes after a kill"),
        (_rule(then='"terminate"'), "rule[0].then", "never killed"),
        (_rule(then='"warn"'), "rule", "no rule ever kills"),
        ('[victims]\nnever = [{comm = "*"}]', "victims.never[0]", "nobody can ever be killed"),
        ('[victims]\nprefer = [{exe_regex = ".?"}]', "victims.prefer[0]", "it says nothing"),
        ('[victims]\nnever = [{comm = "sixteen-letters."}]', "victims.never[0]", "15 bytes"),
        ('[victims]\nnever = [{comm_regex = "^gnome-session-binary$"}]', "victims.never[0]", "15 bytes"),
        ('[victims]\navoid = [{comm = "a"}]\nnever = [{comm = "b"}, {comm = "a"}]', "victims.avoid[0]", "never too"),
        ('[victims]\nprefer = [{comm = "a"}]\navoid = [{comm = "a"}]', "victims.prefer[0]", "in avoid too"),
        ('[hooks]\npre_kill = ["/no/such/program"]', "hooks.pre_kill[0]", "is not there"),
        ('[hooks]\npost_kill = ["/etc/passwd"]', "hooks.post_kill[0]", "cannot be run"),
        ('[kill]\nattempts = 100\nattempt = "1s"', "kill.timeout", "before the last attempt"),
    ],
)
def test_what_is_hardly_meant_is_told(text: str, key: str, part: str) -> None:
    """A warning and no fault: the plan can be used all the same."""
    _, advice = load_source(parse_source(text, "file"), config_path=None)

    ((found, said),) = ((item.key, str(item)) for item in advice)
    assert key == found
    assert part in said
    assert "warning" in said


@pytest.mark.parametrize(
    "text",
    [
        _rule('"memory_current > 95% of limit"', more='scope = "/ci/*"'),
        _rule('"memory_current > 95% of limit"') + '[watch]\nwithin = "/ci"',
        _rule(more='recovered = ["mem_available > 4%"]'),
        _rule(then='"terminate", "kill after 5s"'),
        '[victims]\nnever = [{comm = "fifteen-letters"}, {comm = "[abc]ifteen-letter*"}, {comm_regex = "(a|b){16}"}]',
        '[victims]\nnever = [{comm = "*", user = "root"}]',
        '[victims]\nnever = [{comm = "a"}]\navoid = [{exe = "a"}]',
        '[hooks]\npre_kill = ["/bin/sh", "-c", "true"]',
    ],
)
def test_what_is_meant_is_not_warned_of(text: str) -> None:
    """A warning that comes without need is soon not read any more."""
    _, advice = load_source(parse_source(text, "file"), config_path=None)

    assert advice == ()


def test_who_else_can_choose_roots_hooks_is_told(tmp_path: Path) -> None:
    """A file that everybody can write to, and that names a program to run; without hooks it is nobody's business."""
    file = tmp_path / "x.toml"
    file.write_text('[hooks]\npre_kill = ["/bin/sh"]\n', encoding="utf-8")
    assert load_plan(str(file))[1] == ()
    file.chmod(0o666)

    ((key, text),) = ((item.key, item.text) for item in load_plan(str(file))[1])
    assert key == "hooks"
    assert text.startswith("everybody can write to it")
    file.write_text("", encoding="utf-8")
    assert load_plan(str(file))[1] == ()
