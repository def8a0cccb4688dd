"""The lab's cache: what is in place is whole, other inputs make another key."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from lab import cache
from lab.cache import Cache, disk_bytes, key_of, key_of_files

if TYPE_CHECKING:
    from pathlib import Path


def _fill(place: Path) -> None:
    (place / "part").write_text("whole")


def test_a_thing_is_built_once(tmp_path: Path) -> None:
    """The second who wants a thing gets what the first has built."""
    calls = []

    def build(place: Path) -> None:
        calls.append(place)
        _fill(place)

    first = Cache(tmp_path).obtain("kind", "name", "key", build)
    second = Cache(tmp_path).obtain("kind", "name", "key", build)

    assert len(calls) == 1
    assert first == second
    assert (first / "part").read_text() == "whole"


def test_an_interrupted_build_leaves_nothing_in_place(tmp_path: Path) -> None:
    """Who comes after a build that was cut off builds from an empty directory, and sees nothing of the first."""
    kept = Cache(tmp_path)

    def interrupted(place: Path) -> None:
        (place / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.obtain("kind", "name", "key", interrupted)
    place = kept.obtain("kind", "name", "key", _fill)
    with pytest.raises(KeyboardInterrupt):
        kept.obtain("kind", "name", "other", interrupted)
    kept.obtain("kind", "another", "key", _fill)

    assert [path.name for path in place.iterdir()] == ["part"]
    assert [each.name for each in kept.list_kept()] == ["another-key", "name-key"]


def test_an_unfinished_build_is_listed_with_what_it_takes(tmp_path: Path) -> None:
    """Disk that a build left behind is not hidden."""
    kept = Cache(tmp_path)

    def interrupted(place: Path) -> None:
        (place / "half").write_bytes(b"x" * 100_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.obtain("kind", "name", "key", interrupted)
    (listed,) = kept.list_kept()

    assert listed.name == "name-key.unfinished"
    assert listed.disk_bytes >= 100_000


def test_only_what_was_used_last_of_a_name_stays(tmp_path: Path) -> None:
    """A new key costs the one that was used longest ago its place; other names and kinds are left alone."""
    kept = Cache(tmp_path)
    for age_s, key in ((300, "aaaa"), (200, "bbbb")):
        place = kept.obtain("kind", "name", key, _fill)
        os.utime(place, (time.time() - age_s,) * 2)
    kept.obtain("kind", "name-longer", "aaaa", _fill)
    kept.obtain("other", "name", "aaaa", _fill)
    # Used again, so it is not the oldest any more.
    kept.obtain("kind", "name", "aaaa", _fill)

    kept.obtain("kind", "name", "cccc", _fill)

    assert [each.name for each in kept.list_kept()] == ["name-aaaa", "name-cccc", "name-longer-aaaa", "name-aaaa"]


def test_a_key_tells_parts_from_their_sum() -> None:
    """The same bytes divided in another way, or in another order, are another thing."""
    assert key_of(["ab", "c"]) != key_of(["a", "bc"])
    assert key_of(["a", "b"]) != key_of(["b", "a"])
    assert key_of(["a", b"b"]) == key_of(["a", "b"])


def test_a_key_of_files_sees_name_content_and_mode(tmp_path: Path) -> None:
    """Whatever a guest could notice of a file makes another key; where the checkout lies does not."""
    here, there = tmp_path / "here", tmp_path / "there"
    keys = []
    for root in (here, there):
        root.mkdir()
        (root / "one").write_text("content")
        keys.append(key_of_files(root, [root / "one"]))
    (there / "one").chmod(0o755)
    executable = key_of_files(there, [there / "one"])
    (here / "one").write_text("other")
    changed = key_of_files(here, [here / "one"])
    (there / "one").rename(there / "two")
    renamed = key_of_files(there, [there / "two"])

    assert keys[0] == keys[1]
    assert len({keys[0], executable, changed, renamed}) == 4


def test_a_hole_takes_no_disk(tmp_path: Path) -> None:
    """A guest's empty disk counts for what it takes, not for how long it is."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 30)

    assert disk_bytes(sparse) < 1 << 20


def test_the_root_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable first, then the user's cache directory, then ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    at_home = cache.default_root()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    in_caches = cache.default_root()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "named"))

    assert at_home == tmp_path / "home/.cache/oomreaper-lab"
    assert in_caches == tmp_path / "caches/oomreaper-lab"
    assert cache.default_root() == tmp_path / "named"
