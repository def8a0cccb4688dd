"""Debian's packages: what the host needs is installed, what goes into a guest is downloaded.

The downloads go through an apt of the lab's own: its lists, its archives and its sources lie in the cache, the host's
are neither read nor changed. apt verifies each Release file against Debian's keys, each list against its Release, and
each package against its list; without that it hands out nothing.

A Release file says until when it may be believed. An archive that is served from a copy may be older than that, so this
one date is not checked (the signature is).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from lab.cache import Cache, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Every suite that something of the lab comes from.
SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
# The lists are fetched anew when they are older than this: within a day Debian changes little, and a lab that is
# run again should find what it has built.
_LISTS_AGE_S = 24 * 3600
# Package by the command that shows it is there.
_OF_HOST = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "zstd": "zstd",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "cc": "build-essential",
}


class LabError(Exception):
    """The lab cannot go on; the message says what to do."""


class Package(NamedTuple):
    """One package as the archive's list has it."""

    name: str
    version: str
    sha256: str
    depends: str


def say(text: str) -> None:
    """One line of progress, with the time since the lab was started; not on stdout, which belongs to results."""
    print(f"[lab {time.monotonic() - _STARTED_S:6.1f} s] {text}", file=sys.stderr, flush=True)


_STARTED_S = time.monotonic()


def install_on_host(commands: Sequence[str] = tuple(_OF_HOST)) -> None:
    """Install what is missing of the host's tools.

    Raises:
        LabError: something is missing, and we may not or cannot install it.
    """
    missing = [_OF_HOST[command] for command in commands if shutil.which(command) is None]
    if not os.path.exists(KEYRING):
        missing.append("debian-archive-keyring")
    if not missing:
        return
    wanted = " ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        message = f"the lab needs these packages: {wanted}; install them, or run it as root on a Debian"
        raise LabError(message)
    say(f"installing on this machine: {wanted}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "-o", "Acquire::Check-Valid-Until=false", "update", "-q"], environment=quiet)
    _run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing], environment=quiet)


class Archive:
    """Debian's archive, seen through an apt of its own in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._home = cache.directory("apt")
        self._is_fresh = False

    def refresh(self) -> None:
        """Fetch the lists when there are none or they are old; once a run."""
        if self._is_fresh:
            return
        install_on_host(["dpkg-deb"])
        self._write_settings()
        stamp = self._home / "lists-fetched"
        is_old = not stamp.exists() or time.time() - stamp.stat().st_mtime > _LISTS_AGE_S
        if is_old:
            say("fetching Debian's lists of packages")
            self._apt("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
            stamp.touch()
        self._is_fresh = True

    def find(self, name: str, suite: str) -> Package:
        """The newest version of a package in a suite.

        Raises:
            LabError: the suite has none.
        """
        self.refresh()
        (package,) = self._read_packages([f"{name}/{suite}"]) or (None,)
        if package is None:
            message = f"Debian's {suite} has no package {name}"
            raise LabError(message)
        return package

    def closure(self, names: Sequence[str], suite: str) -> list[Package]:
        """The packages and everything they depend on, from one suite, by name."""
        self.refresh()
        plan = self._apt("apt-get", "install", "--simulate", "-t", suite, *names)
        found = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
        return sorted(self._read_packages([f"{name}={version}" for name, version in found]))

    def download(self, packages: Sequence[Package], directory: Path) -> list[Path]:
        """Fetch packages into a directory; their files, in the packages' order."""
        self.refresh()
        say(f"downloading {len(packages)} packages: {', '.join(package.name for package in packages[:4])} …")
        wanted = [f"{package.name}={package.version}" for package in packages]
        self._apt("apt-get", "download", "-q", *wanted, directory=directory)
        return [_file_of(package, directory) for package in packages]

    def _read_packages(self, which: Sequence[str]) -> list[Package]:
        shown = self._apt("apt-cache", "show", "--no-all-versions", *which)
        packages = []
        for paragraph in shown.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", paragraph, re.MULTILINE))
            if "Package" in fields:
                packages.append(
                    Package(fields["Package"], fields["Version"], fields["SHA256"], fields.get("Depends", ""))
                )
        return packages

    def _apt(self, *command: str, directory: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._home / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return _run(list(command), environment=environment, directory=directory)

    def _write_settings(self) -> None:
        home = self._home
        for inner in ("etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "lists/partial", "archives/partial"):
            (home / inner).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "apt.conf").write_text(_SETTINGS.format(home=home), encoding="utf-8")
        sources = "\n".join(_SOURCE.format(mirror=MIRROR, suite=suite, keyring=KEYRING) for suite in SUITES)
        (home / "etc/sources.list.d/debian.sources").write_text(sources, encoding="utf-8")


def unpack(archives: Sequence[Path], directory: Path) -> None:
    """Unpack packages over each other; none of their scripts is run."""
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(directory)])


def key_of_packages(packages: Sequence[Package]) -> str:
    """A key of packages by what is in them."""
    return key_of(package.sha256 for package in packages)


def _file_of(package: Package, directory: Path) -> Path:
    # apt writes the colon of an epoch as %3a in a file's name.
    version = package.version.replace(":", "%3a")
    (found,) = directory.glob(f"{package.name}_{version}_*.deb")
    return found


def _run(command: list[str], *, environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    done = subprocess.run(
        command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"{' '.join(command[:3])} … failed with {done.returncode}:\n{done.stderr.strip()[-2000:]}"
        raise LabError(message)
    return done.stdout


_SETTINGS = """\
Dir "{home}";
Dir::Etc "etc";
Dir::Etc::Trusted "/dev/null";
Dir::State "{home}";
Dir::State::status "{home}/status";
Dir::Cache "{home}";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "3";
"""
_SOURCE = """\
Types: deb
URIs: {mirror}
Suites: {suite}
Components: main
Architectures: amd64
Signed-By: {keyring}
"""
