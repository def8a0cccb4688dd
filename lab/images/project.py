"""What of this project goes into a guest: our package, the lab's guest programs, the victims, and the tests' suite.

All of it lies below ``lab.seam.HOME``. Programs in C are compiled here, statically, so that they run on whatever
userland an image has. The tests' own tools (pytest and what it needs) come from PyPI, for the guest's Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cache import Cache, key_of, key_of_files
from lab.images import archive
from lab.images.base import PYTHON, compile_python
from lab.packages import LabError, install_on_host, say
from lab.seam import HOME

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = {
    "workload": ROOT / "lab/guest/workload.c",
    "probe": ROOT / "lab/guest/probe.c",
    "victims": ROOT / "tests/victims/victims.c",
}
_FLAGS = ("-O2", "-static", "-pthread")
_INSIDE = HOME.lstrip("/")
# Wheels that run on the guest's C library, should one hold compiled code.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# In the suite's image this is the C compiler: it knows one source, and hands out what the host has made of it.
_STAND_IN_CC = f"""\
#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        -o) program=$2; shift ;;
        *.c) source=$1 ;;
    esac
    shift
done
cmp -s "$source" {HOME}/bin/victims.c || {{ echo "cc: only the victims' own source is known here" >&2; exit 1; }}
cp {HOME}/bin/victims "$program"
"""
_BUILDER = key_of([Path(__file__).read_bytes(), Path(archive.__file__).read_bytes()])


def obtain_programs(cache: Cache) -> Path:
    """The directory of the compiled programs."""

    def build(place: Path) -> None:
        install_on_host(["cc"])
        for name, source in _PROGRAMS.items():
            _run(["cc", *_FLAGS, "-o", str(place / name), str(source)])
        shutil.copy(_PROGRAMS["victims"], place / "victims.c")

    return cache.obtain("project", "programs", key_of([_BUILDER, key_of_files(ROOT, _PROGRAMS.values())]), build)


def obtain_project(cache: Cache, python_tree: Path, *, with_tests: bool = False) -> Path:
    """``project.cpio``: source, guest programs and victims, compiled for the Python of an unpacked tree."""
    programs = obtain_programs(cache)
    sources = _sources(with_tests=with_tests)
    guest = [path for path in (ROOT / "lab/guest").iterdir() if path.suffix == ".py"]

    def build(place: Path) -> None:
        home = place / "tree" / _INSIDE
        for path in sources:
            _copy(path, home / path.relative_to(ROOT))
        for path in guest:
            _copy(path, home / path.name)
        for path in programs.iterdir():
            _copy(path, home / "bin" / path.name)
        if with_tests:
            _write_stand_in_cc(place / "tree")
        compile_python(python_tree, [home])
        write_archive(place / "tree", place / "project.cpio")

    parts = [_BUILDER, python_tree.parent.name, programs.name, key_of_files(ROOT, [*sources, *guest])]
    return cache.obtain("project", "with-tests" if with_tests else "plain", key_of(parts), build)


def obtain_test_tools(cache: Cache, python_tree: Path) -> Path:
    """``tools.cpio``: pytest and the other tools of the tests, as pyproject.toml names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*settings["dependency-groups"]["test"], *settings["project"]["dependencies"]]

    def build(place: Path) -> None:
        say(f"fetching the tests' tools from PyPI: {', '.join(wanted)}")
        site = place / "tree" / _INSIDE / "site"
        options = [f"--platform={platform}" for platform in _PLATFORMS]
        options += [f"--python-version={PYTHON.removeprefix('python')}", "--implementation=cp", "--only-binary=:all:"]
        _run([sys.executable, "-m", "pip", "install", "-q", "--no-compile", f"--target={site}", *options, *wanted])
        compile_python(python_tree, [site])
        write_archive(place / "tree", place / "tools.cpio")

    return cache.obtain("project", "test-tools", key_of([_BUILDER, python_tree.parent.name, *wanted]), build)


def write_archive(tree: Path, path: Path) -> None:
    """All below a directory as an archive, with the directories above it."""
    with path.open("wb") as out:
        archive.write(archive.nodes_of(tree), out)


def _sources(*, with_tests: bool) -> list[Path]:
    found = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    if with_tests:
        found += [path for path in (ROOT / "tests").rglob("*") if path.suffix in {".py", ".c"}]
        found.append(ROOT / "pyproject.toml")
    else:
        found += [ROOT / "tests/__init__.py", *(ROOT / "tests/victims").glob("*.py")]
    return found


def _write_stand_in_cc(tree: Path) -> None:
    path = tree / "usr/bin/cc"
    path.parent.mkdir(parents=True)
    path.write_text(_STAND_IN_CC, encoding="ascii")
    path.chmod(0o755)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"{' '.join(command[:4])} … failed:\n{(done.stdout + done.stderr).strip()[-2000:]}"
        raise LabError(message)
