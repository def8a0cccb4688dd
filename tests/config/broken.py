"""Settings files that are wrong: a corpus that only grows. Each with the faults that must be told, and no others."""

from __future__ import annotations

from typing import NamedTuple

RULE = '[[rule]]\nwhen = ["mem_available < 4%"]\nthen = ["kill"]\n'


class Broken(NamedTuple):
    """``faults``: for each, in order, the key path, the line, and a part of its text."""

    name: str
    text: str
    faults: tuple[tuple[str, int | None, str], ...]


BROKEN = (
    Broken("no closing quote", 'a = "', (("", 1, "it is no TOML"),)),
    Broken("no value", "[kill]\nattempts =\n", (("", 2, "column 11"),)),
    Broken("key twice", "[kill]\nattempts = 1\nattempts = 2\n", (("", 3, "Cannot overwrite a value"),)),
    Broken("table twice", "[kill]\n[kill]\n", (("", 2, "Cannot declare"),)),
    Broken("brackets without end", "a = " + "[" * 100_000, (("", None, "brackets in brackets"),)),
    Broken("unknown table", "[victim]\n", (("victim", 1, 'did you mean "victims"?'),)),
    Broken("unknown table, nothing near", "[xyzzy]\n", (("xyzzy", 1, "known are rule, victims, kill, hooks, watch"),)),
    Broken("key without its table", "never = []\n", (("never", 1, "never belongs under [victims]"),)),
    Broken("unknown key", "[kill]\naattempts = 3\n", (("kill.aattempts", 2, 'did you mean "attempts"?'),)),
    Broken("hostile key", '[kill]\n"\\u001b[31m" = 3\n', (("kill.\\x1b[31m", 1, "there is no such setting"),)),
    Broken("table instead of an array of tables", "[rule]\n", (("rule", 1, "each begun by [[rule]]"),)),
    Broken("array instead of a table", "[[kill]]\n", (("kill", 1, "allowed is a table, [kill]"),)),
    Broken("value instead of a table", "victims = 3\n", (("victims", 1, "found 3; allowed is a table"),)),
    Broken("rules that are numbers", "rule = [1, 2]\n", (("rule[0]", 1, "found 1"), ("rule[1]", 1, "found 2"))),
    Broken("empty rule", "[[rule]]\n", (("rule[0].when", 1, "it is missing"), ("rule[0].then", 1, "it is missing"))),
    Broken(
        "misspelt key that is required",
        '[[rule]]\nwwhen = ["mem_available < 4%"]\nthen = ["kill"]\n',
        (("rule[0].wwhen", 2, 'did you mean "when"?'),),
    ),
    Broken("no condition", '[[rule]]\nwhen = []\nthen = ["kill"]\n', (("rule[0].when", 2, "found an empty list"),)),
    Broken(
        "condition outside of a list",
        '[[rule]]\nwhen = "mem_available < 4%"\nthen = ["kill"]\n',
        (("rule[0].when", 2, "allowed is a list of conditions"),),
    ),
    Broken(
        "unknown metric",
        '[[rule]]\nwhen = ["mem_free < 4%"]\nthen = ["kill"]\n',
        (("rule[0].when[0]", 2, "unknown metric"),),
    ),
    Broken(
        "second line of a list",
        '[[rule]]\nwhen = [\n  "mem_available < 4%",\n  "swap_fre < 4%",\n]\nthen = ["kill"]\n',
        (("rule[0].when[1]", 4, "did you mean swap_free?"),),
    ),
    Broken(
        "the wrong way round",
        '[[rule]]\nwhen = ["mem_available > 4%"]\nthen = ["kill"]\n',
        (("rule[0].when[0]", 2, "allowed is '<'"),),
    ),
    Broken(
        "recovered the wrong way round",
        RULE + 'recovered = ["mem_available < 8%"]\n',
        (("rule[0].recovered[0]", 4, "allowed is '>'"),),
    ),
    Broken(
        "unknown step",
        '[[rule]]\nwhen = ["mem_available < 4%"]\nthen = ["kil"]\n',
        (("rule[0].then[0]", 3, "did you mean kill?"),),
    ),
    Broken("time without a unit", RULE + "for = 2\n", (("rule[0].for", 4, 'did you mean "2s"?'),)),
    Broken("time in words", RULE + 'for = "a while"\n', (("rule[0].for", 4, "is no duration"),)),
    Broken("time too long", RULE + 'for = "25h"\n', (("rule[0].for", 4, "24h"),)),
    Broken("name with a newline", RULE + 'name = "a\\nb"\n', (("rule[0].name", 4, 'found "a\\nb"'),)),
    Broken(
        "one name twice",
        RULE + 'name = "a"\n' + RULE + 'name = "a"\n',
        (("rule[1].name", 8, "rule[0] is called already"),),
    ),
    Broken(
        "a name that another rule has by default",
        RULE + 'name = "rule-2"\n' + RULE,
        (("rule[1].name", 5, "rule[0] is called already"),),
    ),
    Broken("scope misspelt", RULE + 'scope = "machin"\n', (("rule[0].scope", 4, 'did you mean "machine"?'),)),
    Broken("matcher that is no table", '[victims]\nnever = ["sshd"]\n', (("victims.never[0]", 2, "is a table"),)),
    Broken("matcher for everybody", "[victims]\nnever = [{}]\n", (("victims.never[0]", 2, "every process"),)),
    Broken(
        "two bad matchers",
        '[victims]\nnever = [{com = "a"}, {comm = "b"}, {comm = 3}]\n',
        (("victims.never[0].com", 2, 'did you mean "comm"?'), ("victims.never[2].comm", 2, "found 3")),
    ),
    Broken("regex", '[victims]\navoid = [{exe_regex = "("}]\n', (("victims.avoid[0].exe_regex", 2, "unterminated"),)),
    Broken(
        "regex of POSIX",
        '[victims]\navoid = [{comm_regex = "[[:alpha:]]"}]\n',
        (("victims.avoid[0].comm_regex", 2, "nested set"),),
    ),
    Broken("unknown user", '[victims]\nnever = [{user = "rooot"}]\n', (("victims.never[0].user", 2, 'mean "root"?'),)),
    Broken("user beyond all", "[victims]\nnever = [{user = 4294967295}]\n", (("victims.never[0].user", 2, "up to"),)),
    Broken("empty pattern", '[victims]\nnever = [{comm = ""}]\n', (("victims.never[0].comm", 2, 'found ""'),)),
    Broken("NUL", '[victims]\nnever = [{comm = "a\\u0000"}]\n', (("victims.never[0].comm", 2, "NUL"),)),
    Broken("unit of killing", '[victims]\nunit = "processe"\n', (("victims.unit", 2, 'did you mean "process"?'),)),
    Broken("share without a sign", '[victims]\nsmallest = "1"\n', (("victims.smallest", 2, "100%"),)),
    Broken("share of more than all", '[victims]\nsmallest = "101%"\n', (("victims.smallest", 2, "100%"),)),
    Broken("flag in quotes", '[victims]\nhonour_xattrs = "true"\n', (("victims.honour_xattrs", 2, "without quotes"),)),
    Broken("no attempts", "[kill]\nattempts = 0\n", (("kill.attempts", 2, "from 1 to 100"),)),
    Broken("a flag is no number", "[kill]\nattempts = true\n", (("kill.attempts", 2, "found true"),)),
    Broken("infinite", "[kill]\nattempts = inf\n", (("kill.attempts", 2, "found inf"),)),
    Broken("a date", "[kill]\ntimeout = 2026-11-25\n", (("kill.timeout", 2, "found a date or time"),)),
    Broken("attempt too short", '[kill]\nattempt = "1ms"\n', (("kill.attempt", 2, '"10ms"'),)),
    Broken("dump", '[kill]\ncoredump = "later"\n', (("kill.coredump", 2, '"abort" or "wait"'),)),
    Broken(
        "hook as a line of shell", '[hooks]\npre_kill = "/bin/x | y"\n', (("hooks.pre_kill", 2, "allowed is a list"),)
    ),
    Broken("hook by name", '[hooks]\npre_kill = ["sync"]\n', (("hooks.pre_kill[0]", 2, "absolute path"),)),
    Broken("hook without a name", '[hooks]\npost_kill = [""]\n', (("hooks.post_kill[0]", 2, "absolute path"),)),
    Broken("hook with a number", '[hooks]\npre_kill = ["/x", 5]\n', (("hooks.pre_kill[1]", 2, "no shell"),)),
    Broken("relative group", '[watch]\nwithin = "a/b"\n', (("watch.within", 2, "path of a cgroup"),)),
    Broken("group in the file system", '[watch]\nwithin = "/sys/fs/cgroup/a"\n', (("watch.within", 2, "/proc/PID"),)),
    Broken("group with dots", '[watch]\nwithin = "/a/../b"\n', (("watch.within", 2, "path of a cgroup"),)),
    Broken("relative socket", '[watch]\nevents = "x.sock"\n', (("watch.events", 2, "absolute path"),)),
    Broken("socket too long", f'[watch]\nevents = "/{"x" * 107}"\n', (("watch.events", 2, "107 bytes"),)),
    Broken(
        "faults everywhere",
        '[[rule]]\nwhen = ["a"]\nthen = ["b", "c"]\n[kill]\nattempts = -1\n[hooks]\npre_kill = ["x"]\n[what]\n',
        (
            ("rule[0].when[0]", 2, "compares nothing"),
            ("rule[0].then[0]", 3, "unknown step"),
            ("rule[0].then[1]", 3, "unknown step"),
            ("kill.attempts", 5, "found -1"),
            ("hooks.pre_kill[0]", 7, "absolute path"),
            ("what", 8, "there is no such table"),
        ),
    ),
)
