"""From a settings file to a plan: what is right is what was meant, and all that is wrong is told at once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from oomreaper.config.load import find_config, load_plan
from oomreaper.errors import ConfigError, UsageError
from oomreaper.model.plan import KillUnit, MatchField, Metric, StepKind, Unit
from tests.config.broken import BROKEN, RULE, Broken

if TYPE_CHECKING:
    from pathlib import Path

    from oomreaper.config.advice import Advice
    from oomreaper.model.plan import Plan

WHOLE = """
[[rule]]
name = "low"
scope = "/ci/*"
when = ["mem_available < 4%", "psi_memory_full > 15% over 2s"]
for = "2s"
recovered = ["mem_available > 8%"]
then = ["warn", "terminate", "kill after 10s or mem_available < 2%"]
[victims]
never = [{comm = "sshd"}, {exe = "/usr/bin/x", user = "root"}]
avoid = [{unit = "gdm"}]
prefer = [{cmdline_regex = "--type=renderer"}]
unit = "session"
smallest = "2.5%"
honour_oom_group = false
honour_xattrs = false
[kill]
critical = "mem_available < 1%"
attempts = 3
attempt = "50ms"
timeout = "1min"
coredump = "wait"
[hooks]
pre_kill = ["/bin/true", "", "a b"]
pre_kill_timeout = "300ms"
post_kill = ["/bin/true"]
post_kill_timeout = "1h"
[watch]
within = "/ci.slice/"
events = "/tmp/events"
"""


def _load(directory: Path, text: str | bytes) -> tuple[Plan, tuple[Advice, ...]]:
    file = directory / "oomreaper.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_plan(str(file))


def _faults(directory: Path, text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        _load(directory, text)
    return caught.value


def test_every_setting_reaches_the_plan(tmp_path: Path) -> None:
    """Each value lands in its field: times in ns, users as numbers, patterns as expressions, texts as written."""
    plan, advice = _load(tmp_path, WHOLE)

    (rule,) = plan.rules
    assert advice == ()
    assert (rule.name, rule.scope, rule.for_ns) == ("low", "/ci/*", 2_000_000_000)
    assert rule.when[1] == (Metric.PSI_MEMORY_FULL, False, 15.0, Unit.PERCENT, 2_000_000_000, rule.when[1].text)
    assert [condition.is_below for condition in rule.recovered] == [False]
    assert [step.kind for step in rule.then] == [StepKind.WARN, StepKind.TERMINATE, StepKind.KILL]
    assert [test.field for test in plan.victims.never[1].tests] == [MatchField.EXE, MatchField.USER]
    assert plan.victims.never[1].tests[1].regex == r"\A0\Z"
    assert plan.victims.never[0].tests[0].text == "comm = sshd"
    assert (plan.victims.unit, plan.victims.smallest_percent) == (KillUnit.SESSION, 2.5)
    assert (plan.victims.honour_oom_group, plan.victims.honour_xattrs) == (False, False)
    assert plan.critical.threshold == 1.0
    assert (plan.attempts, plan.attempt_ns, plan.timeout_ns, plan.spare_dump) == (3, 50_000_000, 60_000_000_000, True)
    assert plan.hooks == (("/bin/true", "", "a b"), 300_000_000, ("/bin/true",), 3600 * 10**9)
    assert (plan.within, plan.events_path) == ("/ci.slice", "/tmp/events")
    assert plan.config_path == str(tmp_path / "oomreaper.toml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """A file need only say what differs."""
    plan, advice = _load(tmp_path, "")

    assert load_plan(None)[0] == plan._replace(config_path=None)
    assert advice == ()


def test_one_table_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """To protect a process does not take the default rules away."""
    plan, _ = _load(tmp_path, '[victims]\nnever = [{comm = "a"}]\n')

    assert load_plan(None)[0].rules == plan.rules
    assert len(plan.victims.never) == 1


def test_rules_of_the_file_replace_the_default_ones(tmp_path: Path) -> None:
    """Who writes rules has these and no others; without names they are numbered."""
    plan, _ = _load(tmp_path, RULE + RULE)

    assert [rule.name for rule in plan.rules] == ["rule-1", "rule-2"]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_every_fault_is_told_with_its_place(tmp_path: Path, broken: Broken) -> None:
    """File, key path, line, what was found and what is allowed; all at once, in the order of the file."""
    error = _faults(tmp_path, broken.text)

    assert [(key, line) for key, line, _ in broken.faults] == [(fault.key, fault.line) for fault in error.faults]
    for (_, _, part), fault in zip(broken.faults, error.faults, strict=True):
        assert part in fault.text
        assert fault.text.startswith(str(tmp_path / "oomreaper.toml"))
        assert fault.text.isprintable()
        assert len(fault.found) < 120


def test_the_corpus_is_large_and_each_case_has_its_name() -> None:
    """It only grows."""
    assert len(BROKEN) >= 58
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


def test_a_fault_is_the_users_and_ends_the_command_with_2(tmp_path: Path) -> None:
    """The error's text has each fault in a line of its own."""
    error = _faults(tmp_path, "[kill]\nattempts = 0\ntimeout = 0\n")

    assert isinstance(error, UsageError)
    assert (error.exit_status, len(error.faults)) == (2, 2)
    assert len(str(error).splitlines()) == 2


def test_a_flood_of_faults_is_cut_off(tmp_path: Path) -> None:
    """A file that is something else does not bury its first fault under a million others."""
    error = _faults(tmp_path, "[kill]\n" + "".join(f"k{number} = 1\n" for number in range(5000)))

    assert len(error.faults) == 101
    assert "and 4900 faults more" in " ".join(fault.text for fault in error.faults)


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        (b"# \xff\n", 1, "0xff"),
        (b"a = 1\n# caf\xe9\n", 2, "UTF-8"),
        (b"#" * (1 << 20) + b"\n", None, "longer than 1 MiB"),
        (b"\x7fELF\x02\x00", 1, "it is no TOML"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, line: int | None, part: str) -> None:
    """Broken UTF-8 with its line, a file too long to be one, a program."""
    (fault,) = _faults(tmp_path, content).faults

    assert fault.line == line
    assert part in fault.text


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Some editors write one."""
    _load(tmp_path, b"\xef\xbb\xbf[kill]\nattempts = 3\n")


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """One that is not there, a directory, a pipe that nobody writes to, a device without end; none of them waits."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, part in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "a directory"),
        (pipe, "no regular file"),
        ("/dev/zero", "no regular file"),
        ("a\0b", "it cannot be read"),
    ):
        with pytest.raises(ConfigError, match=part):
            load_plan(str(path))


def test_a_file_of_too_many_matchers_is_refused(tmp_path: Path) -> None:
    """What would not fit the watcher is told here and not when it starts."""
    matchers = ",".join('{comm="a"}' for _ in range(60_000))

    (fault,) = _faults(tmp_path, f"[victims]\nnever = [{matchers}]\n").faults

    assert "too many" in fault.text


def test_root_reads_the_machines_file_only(tmp_path: Path) -> None:
    """Nothing in root's environment can name another one."""
    file = tmp_path / "oomreaper.toml"
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}

    assert find_config(environment=environment, uid=0, root_file=str(file)) is None
    file.touch()
    assert find_config(environment=environment, uid=0, root_file=str(file)) == str(file)
    assert find_config(environment=environment, uid=0, root_file=str(tmp_path / "none")) is None


def test_a_user_reads_his_own_file(tmp_path: Path) -> None:
    """In $XDG_CONFIG_HOME, else in ~/.config; a relative one does not count; a dangling link is found."""
    (tmp_path / ".config").mkdir()
    link = tmp_path / ".config" / "oomreaper.toml"
    link.symlink_to("nowhere")

    assert find_config(environment={"HOME": str(tmp_path)}, uid=1000) == str(link)
    assert find_config(environment={"HOME": str(tmp_path), "XDG_CONFIG_HOME": "rel"}, uid=1000) == str(link)
    assert find_config(environment={"HOME": "/", "XDG_CONFIG_HOME": str(tmp_path)}, uid=1000) is None
    assert find_config(environment={}, uid=1000) is None


def test_the_defaults_need_no_library() -> None:
    """Without a file nothing third-party, and no TOML reader, is imported."""
    code = (
        "import sys; from oomreaper.config.load import load_plan; load_plan(None);"
        "print([name for name in ('voluptuous', 'tomllib') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs from the source without it is told what to install."""
    monkeypatch.delitem(sys.modules, "oomreaper.config.schema", raising=False)
    monkeypatch.setitem(sys.modules, "voluptuous", None)

    (fault,) = _faults(tmp_path, "").faults

    assert "pip install voluptuous" in fault.text
