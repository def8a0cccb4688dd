"""The user's patterns: every field, hostile text, what could not be read, and that no answer goes stale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.plan import Matcher, MatchField, MatchTest, Victims
from oomreaper.model.sample import Profile
from oomreaper.policy.matching import SILENT, Finding, Opinions, has_need_of_profile, words

ID = "ab" * 32
PROFILE = Profile(
    exe=b"/usr/lib/firefox/firefox",
    cmdline=b"firefox -contentproc --name=caf\xc3\xa9",
    cgroup="/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-7.scope",
)
IN_CONTAINER = Profile(exe=b"/bin/x", cmdline=b"x", cgroup=f"/docker/{ID}")


def matcher(*tests: tuple[MatchField, str]) -> Matcher:
    """A matcher of all these; its text is "field ~ regex"."""
    return Matcher(tuple(MatchTest(field, regex, f"{field} ~ {regex}") for field, regex in tests))


def never(
    *tests: tuple[MatchField, str], comm: bytes = b"firefox", uid: int = 1000, profile: Profile | None = PROFILE
) -> Finding:
    """What a never list of one matcher says."""
    return Opinions(Victims(never=(matcher(*tests),))).of(comm, uid, profile).never


@pytest.mark.parametrize(
    ("field", "regex", "profile"),
    [
        (MatchField.COMM, "^firefox$", PROFILE),
        (MatchField.COMM, "fire", None),
        (MatchField.USER, "^1000$", None),
        (MatchField.EXE, "^/usr/lib/", PROFILE),
        (MatchField.EXE, "/firefox$", Profile(exe=b"/usr/lib/firefox (deleted)")),
        (MatchField.CMDLINE, "-contentproc", PROFILE),
        (MatchField.CMDLINE, "café", PROFILE),
        (MatchField.CMDLINE, "^$", Profile(cmdline=b"")),
        (MatchField.UNIT, "^app-firefox-7.scope$", PROFILE),
        (MatchField.CGROUP, "^/user.slice/", PROFILE),
        (MatchField.CONTAINER, "^abab", IN_CONTAINER),
    ],
)
def test_each_field_is_searched(field: MatchField, regex: str, profile: Profile | None) -> None:
    """A pattern matches anywhere in its own field, decoded."""
    assert Finding(text=f"{field} ~ {regex}") == never((field, regex), profile=profile)


@pytest.mark.parametrize(
    ("field", "regex", "profile"),
    [
        (MatchField.COMM, "contentproc", PROFILE),
        (MatchField.USER, "^100$", PROFILE),
        (MatchField.EXE, "^firefox", PROFILE),
        (MatchField.UNIT, ".*", Profile(cgroup="/")),
        (MatchField.UNIT, "^$", Profile(cgroup="/slurm/job_7")),
        (MatchField.CONTAINER, ".*", PROFILE),
    ],
)
def test_what_does_not_match(field: MatchField, regex: str, profile: Profile) -> None:
    """Other fields do not count; who is in no unit or container is matched by no pattern on it, not even by ".*"."""
    assert Finding() == never((field, regex), profile=profile)


def test_comm_is_fifteen_bytes() -> None:
    """The kernel keeps no more of a name, so a longer pattern never matches it."""
    comm = b"gnome-terminal-server"[:15]

    assert never((MatchField.COMM, "^gnome-terminal-server$"), comm=comm) == Finding()
    assert never((MatchField.COMM, "^gnome-terminal-$"), comm=comm).text is not None


def test_all_tests_of_a_matcher_must_match() -> None:
    """One that fails settles it."""
    both = ((MatchField.COMM, "fire"), (MatchField.USER, "^1000$"))

    assert never(*both).text == "comm ~ fire and user ~ ^1000$"
    assert never(*both, uid=0) == Finding()


def test_a_matcher_without_tests_means_nobody() -> None:
    """All of nothing is everybody, which nobody means."""
    assert never() == Finding()


@pytest.mark.parametrize("field", [field for field in MatchField if field not in {MatchField.COMM, MatchField.USER}])
@pytest.mark.parametrize("profile", [None, Profile()])
def test_a_field_that_could_not_be_read_is_named(field: MatchField, profile: Profile | None) -> None:
    """Neither a match nor none: whoever asks is to be careful."""
    assert Finding(unread=field) == never((field, "x"), profile=profile)
    assert words(field)


def test_an_unread_field_does_not_matter_when_another_test_fails() -> None:
    """A matcher that cannot match any more needs no reading; the order of its tests is no matter."""
    tests = ((MatchField.EXE, "x"), (MatchField.COMM, "bash"))

    assert never(*tests, profile=None) == Finding()
    assert never(*reversed(tests), profile=None) == Finding()


def test_a_match_outweighs_a_doubt() -> None:
    """Of several matchers, one that matches is the answer, wherever it stands."""
    victims = Victims(never=(matcher((MatchField.EXE, "x")), matcher((MatchField.COMM, "fire"))))

    assert Opinions(victims).of(b"firefox", 0, None).never == Finding(text="comm ~ fire")


def test_the_lists_are_told_apart() -> None:
    """never, avoid and prefer each have their answer."""
    victims = Victims(
        never=(matcher((MatchField.COMM, "a")),),
        avoid=(matcher((MatchField.COMM, "b")),),
        prefer=(matcher((MatchField.COMM, "c")),),
    )
    opinions = Opinions(victims)

    assert [
        (opinion.never.text, opinion.avoid.text, opinion.prefer.text)
        for opinion in (opinions.of(comm, 0, None) for comm in (b"a", b"b", b"c", b"bc", b"d"))
    ] == [
        ("comm ~ a", None, None),
        (None, "comm ~ b", None),
        (None, None, "comm ~ c"),
        (None, "comm ~ b", "comm ~ c"),
        (None, None, None),
    ]


@pytest.mark.parametrize(
    "comm",
    [
        b"foo) Z ",
        b"a\nb",
        b"\xff\xfe",
        b"\x1b[31m",
        b"",
        b"\xed\xa0\x80",
        b"caf\xc3",
    ],
)
def test_hostile_names_are_matched_and_break_nothing(comm: bytes) -> None:
    """No name is beyond matching: newlines, escapes, invalid UTF-8, half a character."""
    assert never((MatchField.COMM, r"(?s)\A.*\Z"), comm=comm).text is not None
    assert never((MatchField.COMM, "sshd"), comm=comm) == Finding()


@given(comm=st.binary(max_size=15), cmdline=st.binary(max_size=200), exe=st.binary(max_size=50), cgroup=st.text())
def test_any_bytes_have_an_answer(comm: bytes, cmdline: bytes, exe: bytes, cgroup: str) -> None:
    """Whatever a process calls itself, each field gives an answer and no error."""
    profile = Profile(exe=exe, cmdline=cmdline, cgroup=cgroup)
    victims = Victims(never=tuple(matcher((field, "never-this-text")) for field in MatchField))

    assert Opinions(victims).of(comm, 1, profile) == SILENT


def test_a_renamed_process_gets_a_new_answer() -> None:
    """An answer rests on the name, the user and the profile; when one of them changes, it is asked anew."""
    opinions = Opinions(Victims(never=(matcher((MatchField.COMM, "^sshd$")), matcher((MatchField.EXE, "^/bin/x$")))))

    assert opinions.of(b"sshd", 0, PROFILE).never.text == "comm ~ ^sshd$"
    assert opinions.of(b"hog", 0, PROFILE).never == Finding()
    assert opinions.of(b"hog", 0, IN_CONTAINER).never.text == "exe ~ ^/bin/x$"
    assert opinions.of(b"hog", 0, None).never == Finding(unread=MatchField.EXE)


def test_an_answer_is_kept() -> None:
    """The same question, also in the next ranking, is answered by the same object."""
    opinions = Opinions(Victims(never=(matcher((MatchField.EXE, "x")),)))
    first = opinions.of(b"a", 0, PROFILE)
    opinions.turn()

    assert opinions.of(b"a", 0, PROFILE) is first


def test_what_is_not_asked_for_goes() -> None:
    """A thousand processes that have gone leave nothing after two rankings."""
    opinions = Opinions(Victims(never=(matcher((MatchField.EXE, "x")),)))
    for number in range(1000):
        opinions.of(b"%d" % number, 0, PROFILE)
    assert len(opinions) == 1000
    opinions.turn()
    opinions.of(b"1", 0, PROFILE)
    opinions.turn()
    opinions.of(b"1", 0, PROFILE)

    assert len(opinions) == 2


def test_processes_of_one_name_without_a_profile_are_one_question() -> None:
    """A fork bomb is asked about once."""
    opinions = Opinions(Victims(avoid=(matcher((MatchField.COMM, "x")),)))
    for _ in range(1000):
        opinions.of(b"bomb", 1000, None)

    assert len(opinions) == 1


def test_without_lists_nothing_is_kept() -> None:
    """Who has no preferences pays nothing for them."""
    opinions = Opinions(Victims())

    assert opinions.of(b"a", 0, None) is SILENT
    assert len(opinions) == 0


def test_which_fields_need_a_profile() -> None:
    """All but the name and the user."""
    assert {field for field in MatchField if has_need_of_profile([matcher((field, "x"))])} == set(MatchField) - {
        MatchField.COMM,
        MatchField.USER,
    }
