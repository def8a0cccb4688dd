"""Debian's packages: what is asked of apt, and what is made of its answers."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from lab import packages
from lab.cache import Cache
from lab.packages import Archive, LabError, Package, install_on_host, key_of_packages

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = """\
Package: python3.13
Version: 3.13.5-2
Depends: libc6 (>= 2.35), python3.13-minimal (= 3.13.5-2)
SHA256: aa

Package: libc6
Version: 1:2.41-12
SHA256: bb
"""


def _stand_in(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for apt's commands, first in PATH; each call is noted."""
    tools = tmp_path / "tools"
    note = f'echo "$(basename $0) $*" >> {tmp_path}/calls; echo "$APT_CONFIG" >> {tmp_path}/configs'
    _stand_in(tools, "apt-cache", f"{note}\ncat <<'END'\n{_SHOWN}END")
    plan = "Inst libc6 (1:2.41-12 Debian:13 [amd64])\nInst python3.13 (3.13.5-2 Debian:13 [amd64]) []\nConf libc6 (1)"
    _stand_in(tools, "apt-get", f"{note}\ncat <<'END'\n{plan}\nEND")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "keyring").touch()
    monkeypatch.setattr(packages, "KEYRING", str(tmp_path / "keyring"))
    return tmp_path


def test_nothing_is_installed_when_nothing_is_missing(apt: Path) -> None:
    """A host that has everything is not touched."""
    install_on_host(["dpkg-deb"])

    assert not (apt / "calls").exists()


def test_who_may_not_install_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without root the lab says which packages it needs, and changes nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(LabError, match=r"qemu-system-x86.*mmdebstrap"):
        install_on_host(["qemu-system-x86_64", "mmdebstrap"])


def test_a_closure_is_what_apt_would_install(apt: Path) -> None:
    """Names, exact versions and digests of everything that apt would bring, and nothing that is configured only."""
    found = Archive(Cache(apt / "cache")).closure(["python3.13"], "trixie")

    assert found == [
        Package("libc6", "1:2.41-12", "bb", ""),
        Package("python3.13", "3.13.5-2", "aa", "libc6 (>= 2.35), python3.13-minimal (= 3.13.5-2)"),
    ]
    assert "apt-cache show --no-all-versions libc6=1:2.41-12 python3.13=3.13.5-2" in (apt / "calls").read_text()


def test_every_call_of_apt_is_of_the_labs_own(apt: Path) -> None:
    """The host's sources, lists and keys are not used: the settings name a directory of the cache for everything."""
    Archive(Cache(apt / "cache")).closure(["python3.13"], "trixie")
    config = apt / "cache/apt/apt.conf"
    settings = config.read_text()
    sources = (apt / "cache/apt/etc/sources.list.d/debian.sources").read_text()

    assert set((apt / "configs").read_text().split()) == {str(config)}
    assert f'Dir "{apt}/cache/apt";' in settings
    assert 'Dir::Etc::Trusted "/dev/null";' in settings
    assert "AllowUnauthenticated" not in settings
    assert sources.count("Signed-By: ") == len(packages.SUITES)
    assert "trusted" not in sources.lower()


def test_lists_are_fetched_once_a_day(apt: Path) -> None:
    """A second run takes what is there; a day later the lists are fetched anew."""
    cache = Cache(apt / "cache")

    def updates() -> int:
        Archive(cache).refresh()
        return (apt / "calls").read_text().count("apt-get update")

    first, second = updates(), updates()
    yesterday_s = time.time() - 25 * 3600
    os.utime(apt / "cache/apt/lists-fetched", (yesterday_s, yesterday_s))

    assert (first, second, updates()) == (1, 1, 2)


def test_what_apt_refuses_is_told_in_its_words(apt: Path) -> None:
    """A list that cannot be verified ends the lab, with apt's reason."""
    _stand_in(apt / "tools", "apt-get", 'echo "E: The repository is not signed." >&2; exit 100')

    with pytest.raises(LabError, match="is not signed"):
        Archive(Cache(apt / "cache")).refresh()


def test_a_download_is_found_by_its_package(tmp_path: Path) -> None:
    """apt writes an epoch's colon as %3a."""
    name = tmp_path / "libc6_1%3a2.41-12_amd64.deb"
    name.touch()

    assert packages._file_of(Package("libc6", "1:2.41-12", "", ""), tmp_path) == name


def test_a_key_of_packages_is_of_their_content() -> None:
    """Another build of the same version is another package."""
    package = Package("a", "1", "aa", "")

    assert key_of_packages([package]) != key_of_packages([package._replace(sha256="bb")])
    assert key_of_packages([package]) == key_of_packages([package._replace(depends="other")])


def test_the_stand_ins_can_be_run(apt: Path) -> None:
    """The tests above say nothing unless these are programs."""
    assert all(path.stat().st_mode & stat.S_IXUSR for path in (apt / "tools").iterdir())
