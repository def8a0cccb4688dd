"""A guest's userland without a distribution: busybox, Python and the libraries they need, from Debian's packages.

Unpacked, not installed: no script of a package is run, and no root is needed. Python's code is compiled by the guest's
own interpreter, here on the host: in an emulated machine that would take a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cache import Cache, key_of
from lab.images import archive
from lab.packages import LabError, key_of_packages, say, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.packages import Archive

_SUITE = "trixie"
PYTHON = "python3.13"
# e2fsprogs: some victims stand on a file system of their own, in a loop device. mount: its swapon knows priorities.
_WANTED = (PYTHON, "busybox-static", "e2fsprogs", "mount")
# The tests expect the real ones of these, with all their options.
_WANTED_BY_TESTS = ("util-linux",)
# What apt adds for the sake of scripts and data that nobody here runs or reads.
_UNWANTED = ("debconf", "cdebconf", "perl", "libperl", "tzdata", "dpkg", "tar", "libdb5", "readline-common", "netbase")
# Parts of Python's library that no program of ours imports; each is some hundred KiB of the guest's memory.
_UNUSED = ("test", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "turtledemo", "venv", "wsgiref")
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_USERS = b"""\
root:x:0:0:root:/root:/bin/sh
one:x:1001:1001::/tmp:/bin/sh
two:x:1002:1002::/tmp:/bin/sh
nobody:x:65534:65534::/:/bin/false
"""
_GROUPS = b"root:x:0:\none:x:1001:\ntwo:x:1002:\nnogroup:x:65534:\n"
# How a thing is built is part of its key, as what it is built from is.
_BUILDER = key_of([Path(__file__).read_bytes(), Path(archive.__file__).read_bytes()])


def obtain_base(cache: Cache, packages: Archive, *, with_tools: bool = False) -> Path:
    """The directory of a base: ``tree``, and the same as ``base.cpio``. With the tools that the tests want, or not."""
    wanted = (*_WANTED, *_WANTED_BY_TESTS) if with_tools else _WANTED
    found = [package for package in packages.closure(wanted, _SUITE) if not package.name.startswith(_UNWANTED)]

    def build(place: Path) -> None:
        say(f"building a base of the small image from {len(found)} packages")
        tree = place / "tree"
        with tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch:
            _make_merged(tree)
            unpack(packages.download(found, Path(scratch)), tree)
        _trim(tree)
        compile_python(tree, [tree / "usr/lib" / PYTHON])
        with (place / "base.cpio").open("wb") as out:
            archive.write(_nodes_of(tree), out)

    key = key_of([_BUILDER, key_of_packages(found)])
    return cache.obtain("base", "with-tools" if with_tools else "plain", key, build)


def compile_python(tree: Path, directories: Sequence[Path]) -> None:
    """Compile Python's code below directories for the interpreter of an unpacked tree, plain and without asserts.

    "Unchecked": the guest takes the compiled file without a look at the source's time, which no archive here keeps.

    Raises:
        LabError: that interpreter does not run here, or refuses some code.
    """
    (python,) = [path for path in (tree / "usr/bin").glob("python3.[0-9]*") if path.name.count(".") == 1]
    command = [str(tree / _LOADER), "--library-path", str(tree / _LIBRARIES), str(python), "-I", "-S", "-m"]
    command += ["compileall", "-q", "-o", "0", "-o", "2", "--invalidation-mode", "unchecked-hash"]
    environment = {"PYTHONHOME": str(tree / "usr"), "PATH": os.defpath}
    for path in directories:
        done = subprocess.run([*command, str(path)], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            message = f"the guest's Python cannot compile {path}: {(done.stdout + done.stderr)[-2000:]}"
            raise LabError(message)


def _make_merged(tree: Path) -> None:
    """The links that a Debian has at its root: packages unpack into /usr then."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")


def _trim(tree: Path) -> None:
    settings = (tree / "etc/mke2fs.conf").read_bytes()
    for name in ("usr/share", "usr/include", "var", "etc"):
        shutil.rmtree(tree / name, ignore_errors=True)
    (tree / "etc").mkdir()
    (tree / "etc/mke2fs.conf").write_bytes(settings)
    library = tree / "usr/lib" / PYTHON
    for path in [*(library / name for name in _UNUSED), *library.glob("config-*")]:
        shutil.rmtree(path, ignore_errors=True)
    for name in ("gconv", "perl-base", "engines-3", "ossl-modules"):
        shutil.rmtree(tree / _LIBRARIES / name, ignore_errors=True)


def _nodes_of(tree: Path) -> list[archive.Node]:
    return archive.with_parents(
        [
            *archive.nodes_of(tree),
            archive.link("usr/bin/python3", PYTHON),
            *_applets(tree),
            archive.file("etc/passwd", _USERS),
            archive.file("etc/group", _GROUPS),
            *(archive.directory(name) for name in ("proc", "sys", "dev", "tmp", "run", "root", "mnt", "var")),
            archive.character_device("dev/console", 5, 1),
            archive.character_device("dev/null", 1, 3),
        ]
    )


def _applets(tree: Path) -> list[archive.Node]:
    """A link for each of busybox's commands that no package brings as a program of its own."""
    busybox = tree / "usr/bin/busybox"
    names = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout.split()
    taken = {path.name for directory in ("usr/bin", "usr/sbin") for path in (tree / directory).iterdir()}
    return [archive.link(f"usr/bin/{name}", "busybox") for name in names if name not in taken]
