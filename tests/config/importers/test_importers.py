"""The peers' settings become ours, and each that does not is named with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.config.importers.earlyoom import find_arguments, read_environment_value
from oomreaper.config.importers.peers import PEERS, import_settings
from oomreaper.config.importers.report import Imported, render_toml
from oomreaper.config.importers.systemd_oomd import find_scope
from oomreaper.config.importers.text import convert_posix_regex, convert_share, convert_time_span
from oomreaper.config.load import load_plan
from oomreaper.errors import ConfigError

FILES = Path(__file__).resolve().parent.parent / "files"
SOURCES = {"earlyoom": FILES / "earlyoom", "nohang": FILES / "nohang.conf", "systemd-oomd": FILES / "units"}


def _earlyoom(directory: Path, arguments: str) -> Imported:
    file = directory / "earlyoom"
    file.write_text(arguments, encoding="utf-8")
    return import_settings("earlyoom", str(file))


def _left(imported: Imported) -> dict[str, str]:
    return {left.setting: left.reason for left in imported.left}


def _told(imported: Imported) -> list[str]:
    return [carried.setting for carried in imported.carried] + [left.setting for left in imported.left]


def _whens(imported: Imported) -> dict[object, object]:
    return {rule["name"]: rule["when"] for rule in imported.rules}


@pytest.mark.parametrize("peer", PEERS)
def test_an_import_is_a_settings_file(peer: str, tmp_path: Path) -> None:
    """What is printed can be used as it is; every setting that was met stands in its comments."""
    imported = import_settings(peer, str(SOURCES[peer]))
    text = render_toml(imported)
    file = tmp_path / "oomreaper.toml"
    file.write_text(text, encoding="utf-8")

    plan, _ = load_plan(str(file))

    assert len(plan.rules) == len(imported.rules) > 0
    flat = " ".join(text.replace("\n# ", " ").split())
    for setting in _told(imported):
        assert " ".join(setting.split()) in flat


def test_nothing_of_nohang_is_dropped_in_silence() -> None:
    """Every key and every score line of the file is either carried over or named."""
    imported = import_settings("nohang", str(SOURCES["nohang"]))
    told = "\n".join(_told(imported))

    for line in SOURCES["nohang"].read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "# ":
            assert " ".join(line.split()) in " ".join(told.split()), line


# -- earlyoom ----------------------------------------------------------------------------------------------


def test_earlyoom_s_file() -> None:
    """Levels, patterns without their quotes and in Python's words, swap left out at 100, root spared."""
    imported = import_settings("earlyoom", str(SOURCES["earlyoom"]))

    assert _whens(imported) == {"low": ["mem_available < 6%"], "critical": ["mem_available < 3%"]}
    assert imported.rules[0]["then"] == ["terminate", "kill after 10s or mem_available < 3%"]
    assert imported.tables["victims"] == {
        "avoid": [{"comm_regex": "(^|/)(init|systemd|Xorg|sshd)$"}],
        "prefer": [{"comm_regex": "^(Web Content|[a-zA-Z]+-tab)$"}],
        "never": [{"comm_regex": "\\bpostgres\\b"}, {"user": "root"}],
    }
    left = _left(imported)
    assert list(left) == ["the quotes in EARLYOOM_ARGS", "-r 3600", "-n", "(built in) SIGKILL by level only"]
    assert "issue 380" in left["the quotes in EARLYOOM_ARGS"]


@pytest.mark.parametrize(
    ("arguments", "low", "critical"),
    [
        ("-d", ["mem_available < 10%", "swap_free < 10%"], ["mem_available < 5%", "swap_free < 5%"]),
        ("-m 5", ["mem_available < 5%", "swap_free < 10%"], ["mem_available < 2.5%", "swap_free < 5%"]),
        ("-m 1,2 -s 3,1", ["mem_available < 2%", "swap_free < 3%"], ["mem_available < 2%", "swap_free < 1%"]),
        ("-s 100", ["mem_available < 10%"], ["mem_available < 5%"]),
        ("-M 1000 -s 100", ["mem_available < 1000K"], ["mem_available < 500K"]),
        (
            "-m5 -M 9,4 -s100",
            ["mem_available < 5%", "mem_available < 9K"],
            ["mem_available < 2.5%", "mem_available < 4K"],
        ),
        ("-m 5,0", ["mem_available < 5%", "swap_free < 10%"], None),
    ],
)
def test_earlyoom_s_levels(tmp_path: Path, arguments: str, low: list[str], critical: list[str] | None) -> None:
    """SIGKILL at half of SIGTERM, the lower of per cent and size, no SIGKILL at 0."""
    imported = _earlyoom(tmp_path, arguments)

    expected: dict[object, object] = {"low": low}
    if critical is not None:
        expected["critical"] = critical
    assert expected == _whens(imported)
    assert (imported.rules[0]["then"] == ["terminate"]) == (critical is None)


def test_quotes_that_became_part_of_the_pattern_are_named(tmp_path: Path) -> None:
    """Two layers of quotes: earlyoom matched nothing with them; here they are taken off, and it is said."""
    imported = _earlyoom(tmp_path, """EARLYOOM_ARGS="--avoid \\"'^sshd$'\\" """ + '"')

    assert imported.tables["victims"]["avoid"] == [{"comm_regex": "^sshd$"}]
    assert any("matched nothing" in reason for reason in _left(imported).values())


def test_every_option_of_earlyoom_is_known(tmp_path: Path) -> None:
    """None ends in an error, and each is told of."""
    options = (
        "-m 5 -s 5 -M 5 -S 5 -k -i -n -g -N /bin/a -P /bin/b -d --debug -v -r 60 -p -h --help --prefer a --avoid b "
        "--ignore c --ignore-root-user --sort-by-rss --dryrun --syslog --kernel-oom -N relative -m nonsense"
    )
    imported = _earlyoom(tmp_path, options)
    told = {setting.split()[0] for setting in _told(imported)}

    assert {word for word in options.split() if word.startswith("-")} <= told
    assert imported.tables["hooks"] == {"post_kill": ["/bin/a"], "pre_kill": ["/bin/b"]}
    assert imported.tables["victims"]["unit"] == "group"


@pytest.mark.parametrize("arguments", ["--frobnicate", "-m", "stray", "EARLYOOM=1", ""])
def test_what_earlyoom_refuses_is_refused(tmp_path: Path, arguments: str) -> None:
    """Rather than half of it be carried over."""
    with pytest.raises(ConfigError):
        _earlyoom(tmp_path, f'EARLYOOM_ARGS="{arguments}"' if arguments.startswith(("-", "s")) else arguments)


def test_a_pattern_that_cannot_be_carried_over_is_named(tmp_path: Path) -> None:
    """It is not written half; what to do is said."""
    imported = _earlyoom(tmp_path, "EARLYOOM_ARGS=\"--avoid '(' --prefer '[[.a.]]' --ignore '[[:nope:]]'\"")

    assert "victims" not in imported.tables
    assert {"--avoid (", "--prefer [[.a.]]", "--ignore [[:nope:]]"} <= set(_left(imported))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"-m 5"', "-m 5"),
        ("-m 5 -s 5\nX=1", "-m 5 -s 5"),
        ("-m 5 --avoid 'a b'", "-m 5 --avoid 'a b'"),
        ("'-m 5' \"-s 6\"", "-m 5-s 6"),
        ('"a \\" \\\\ \\$ \\x"', 'a " \\ $ \\x'),
        ('"a\\\nb"', "ab"),
        ("a\\\n b\n", "a b"),
        ('"a\nb"', "a\nb"),
        ('"never closed', "never closed"),
        ("", ""),
    ],
)
def test_a_value_is_read_as_systemd_reads_it(text: str, value: str) -> None:
    """systemd.exec(5), EnvironmentFile=: quotes at the start, backslashes, continued lines."""
    assert value == read_environment_value(text)


def test_where_arguments_may_stand() -> None:
    """The last assignment, a unit's ExecStart, or nothing but arguments."""
    assert find_arguments("EARLYOOM_ARGS=-m 1\n#EARLYOOM_ARGS=-m 2\n") == "-m 1"
    assert find_arguments("EARLYOOM_ARGS=-m 1\nEARLYOOM_ARGS=-m 3\n") == "-m 3"
    assert find_arguments("[Service]\nExecStart=\nExecStart=-/usr/bin/earlyoom -m 4 $EARLYOOM_ARGS\n") == "-m 4"
    assert find_arguments("-m 5\n") == "-m 5"
    assert find_arguments("something else") is None


# -- nohang ------------------------------------------------------------------------------------------------


def test_nohang_s_file() -> None:
    """Levels with swap, zram and PSI as alternatives; scores as never, avoid and prefer."""
    imported = import_settings("nohang", str(SOURCES["nohang"]))

    assert _whens(imported) == {
        "low": ["mem_available < 5%", "swap_free < 10%"],
        "low-zram": ["mem_available < 5%", "zram_used > 55%"],
        "low-psi": ["psi_memory_full > 40% over 10s", "mem_available < 5%"],
        "critical": ["mem_available < 2%", "swap_free < 400M"],
        "critical-zram": ["mem_available < 2%", "zram_used > 60%"],
        "critical-psi": ["psi_memory_full > 90% over 10s", "mem_available < 2%"],
        "warning": ["mem_available < 20%", "swap_free < 25%"],
        "warning-zram": ["mem_available < 20%", "zram_used > 45%"],
        "warning-psi": ["psi_memory_full > 10% over 10s", "mem_available < 20%"],
    }
    assert imported.rules[0]["then"] == ["terminate", "kill after 8s or mem_available < 2%"]
    assert imported.rules[2]["for"] == "30s"
    assert imported.tables["hooks"] == {"post_kill": ["/usr/local/bin/tell", "now"]}
    assert imported.tables["victims"] == {
        "avoid": [{"comm_regex": "^(Xorg|sway)$"}, {"user": "0"}],
        "never": [{"comm_regex": "^sshd$"}],
        "prefer": [{"cmdline_regex": "-childID|--type=renderer"}, {"exe_regex": "^/tmp/"}],
    }
    left = _left(imported)
    for setting in ("a_new_key = 7", "@BADNESS_ADJ_RE_UID -10 /// ^10", "@BADNESS_ADJ_RE_NAME 100 /// ("):
        assert setting in left
    note = next(carried.note for carried in imported.carried if carried.setting == "hard_threshold_min_swap = 400 M")
    assert "KiB by mistake" in note


def test_what_nohang_has_switched_off_is_no_rule(tmp_path: Path) -> None:
    """Levels of a check that is off are not carried over."""
    file = tmp_path / "nohang.conf"
    text = SOURCES["nohang"].read_text(encoding="utf-8").replace("enabled = True", "enabled = False")
    file.write_text(text, encoding="utf-8")

    assert list(_whens(import_settings("nohang", str(file)))) == ["low", "critical"]


# -- systemd-oomd ------------------------------------------------------------------------------------------


def test_systemd_oomd_s_units() -> None:
    """Each unit that says kill becomes a rule with its own levels, or those of oomd.conf and its drop-in."""
    imported = import_settings("systemd-oomd", str(SOURCES["systemd-oomd"]))
    rules = {rule["name"]: rule for rule in imported.rules}

    assert rules == {
        "swap": {
            "name": "swap",
            "scope": "machine",
            "when": ["mem_available < 20%", "swap_free < 20%"],
            "then": ["kill"],
        },
        "pressure-user-.service": {
            "name": "pressure-user-.service",
            "scope": "*/user@*.service",
            "when": ["psi_memory_full > 50% over 10s"],
            "for": "80s",
            "then": ["kill"],
        },
        "pressure-ci.slice": {
            "name": "pressure-ci.slice",
            "scope": "*/ci.slice",
            "when": ["psi_memory_full > 50% over 10s"],
            "for": "80s",
            "then": ["kill"],
        },
    }
    assert imported.tables["victims"] == {
        "avoid": [{"cgroup": "*/ci.slice/*"}],
        "never": [{"unit": "db.service"}],
    }
    left = _left(imported)
    assert {"PrekillHookTimeoutSec=2s", "db.service: OOMRules=mine", "(built in) the whole control group dies"} <= set(
        left
    )
    assert "ci.slice: ManagedOOMMemoryPressureDurationSec=forever" in left


def test_without_a_unit_that_says_kill_nothing_was_watched(tmp_path: Path) -> None:
    """oomd.conf alone does nothing, and so says the import."""
    file = tmp_path / "oomd.conf"
    file.write_text("[OOM]\nSwapUsedLimit=50%\n", encoding="utf-8")

    imported = import_settings("systemd-oomd", str(file))

    assert imported.rules == ()
    assert set(_left(imported)) == {"SwapUsedLimit=50%", "(nothing says kill)"}


# -- all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS)
def test_a_file_that_is_not_the_peer_s_is_refused(peer: str, tmp_path: Path) -> None:
    """Empty, binary, or not there."""
    file = tmp_path / "x"
    with pytest.raises(ConfigError, match="No such file"):
        import_settings(peer, str(file))
    for content in (b"", b"\x7fELF\0\xff\n\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError):
            import_settings(peer, str(file))


@pytest.mark.parametrize(
    ("peer", "text", "rules"),
    [
        ("earlyoom", "-m 500,4", ["critical"]),
        ("earlyoom", "-M 9999999999999999999999,4", ["critical"]),
        ("nohang", "soft_threshold_min_mem = 500 %\nhard_threshold_min_mem = 2 %\n", ["critical"]),
        ("systemd-oomd", "[Slice]\nManagedOOMMemoryPressure=kill\nManagedOOMMemoryPressureDurationSec=99h\n", []),
    ],
)
def test_what_only_the_peer_allows_is_left(peer: str, text: str, rules: list[str], tmp_path: Path) -> None:
    """A level or a time beyond ours costs that rule, which is named, and not the import."""
    file = tmp_path / "x.slice"
    file.write_text(text, encoding="utf-8")

    imported = import_settings(peer, str(file))

    assert rules == list(_whens(imported))
    assert any(setting.startswith("(rule ") for setting in _left(imported))


def test_units_of_nearly_one_name_make_two_rules(tmp_path: Path) -> None:
    """A rule's name has fewer characters than a unit's; each still gets its own."""
    for name in ("a b.slice", "a-b.slice"):
        (tmp_path / name).write_text("[Slice]\nManagedOOMMemoryPressure=kill\n", encoding="utf-8")

    assert len(_whens(import_settings("systemd-oomd", str(tmp_path)))) == 2


def test_an_unknown_peer_is_told() -> None:
    """With the ones that are known."""
    with pytest.raises(ConfigError, match='did you mean "nohang"'):
        import_settings("nohangd", None)


@given(st.sampled_from(PEERS), st.text(st.characters(codec="utf-8"), max_size=80))
def test_hostile_files_make_a_sound_file_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, peer: str, junk: str
) -> None:
    """Whatever stands in a peer's file: ours can be read, and nothing of theirs leaves its comment."""
    start = {
        "earlyoom": "EARLYOOM_ARGS=-m 5 --avoid ",
        "nohang": "soft_threshold_min_mem = 5 %\n@BADNESS_ADJ_RE_NAME -5 /// ",
        "systemd-oomd": "[OOM]\nSwapUsedLimit=",
    }
    file = tmp_path_factory.getbasetemp() / "hostile.service"
    file.write_text(start[peer] + junk + "\n" + junk, encoding="utf-8")
    try:
        imported = import_settings(peer, str(file))
    except ConfigError:
        return

    assert all(line.isprintable() for line in render_toml(imported).split("\n"))


@pytest.mark.parametrize(
    ("span", "ours"),
    [("30s", "30s"), ("1min 30s", "90s"), ("2 h", "2h"), ("500ms", "500ms"), ("7", "7s"), ("x", None), ("", None)],
)
def test_spans_of_systemd(span: str, ours: str | None) -> None:
    """systemd.time(7)."""
    assert ours == convert_time_span(span)


def test_shares_of_systemd() -> None:
    """Per cent, per mille, per ten thousand."""
    assert [convert_share(text) for text in ("60%", "600\u2030", "6000\u2031", "101%", "60")] == [
        60,
        60,
        60,
        None,
        None,
    ]


def test_scopes_of_units() -> None:
    """The root slice is the machine; a template is all its instances."""
    assert [find_scope(unit) for unit in ("-.slice", "a.service", "user@.service", "a[b.slice")] == [
        "machine",
        "*/a.service",
        "*/user@*.service",
        "*/a[[]b.slice",
    ]


def test_posix_patterns() -> None:
    """Classes and ends of words; what cannot be said is told."""
    assert convert_posix_regex(r"[[:digit:]_]+\<a\>") == (r"[0-9_]+\ba\b", "")
    assert convert_posix_regex(r"\\<")[0] == r"\\<"
    assert convert_posix_regex("[[=a=]]")[1]
