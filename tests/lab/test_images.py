"""What images are made of; nothing is downloaded and no guest is started here."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from lab.cache import Cache
from lab.images import build, full, project, small
from lab.kernels import Kernel
from lab.packages import Archive, LabError
from lab.seam import AGENT_PORT, HOME, PROBE_PORT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("image", "kernel", "words"), [("large", "newest", "image is called"), ("small", "2.4", "kernel")]
)
def test_what_is_not_known_is_refused_before_anything_is_fetched(
    tmp_path: Path, image: str, kernel: str, words: str
) -> None:
    """A wrong name costs no download and leaves nothing in the cache but apt's empty place."""
    cache = Cache(tmp_path)

    with pytest.raises(LabError, match=words):
        build.obtain_image(image, kernel, cache, Archive(cache))
    assert [each.name for each in cache.list_kept()] == []


def test_modules_are_named_in_their_order_with_their_options(tmp_path: Path) -> None:
    """The file that the start reads has a line for each module that is in the archive, none for what is built in."""
    modules = tmp_path / "modules"
    modules.mkdir()
    for name, needs in (("zram", b"zsmalloc"), ("zsmalloc", b""), ("loop", b"")):
        (modules / f"{name}.ko").write_bytes(b"\x00depends=" + needs + b"\x00")
    kernel = Kernel("newest", "7.3", "7.3-1", tmp_path / "vmlinuz", modules)

    archived = (small.obtain_modules(kernel, Cache(tmp_path / "cache")) / "modules.cpio").read_bytes()

    order = b"/usr/lib/modules/00-zsmalloc.ko\n/usr/lib/modules/01-zram.ko\n/usr/lib/modules/02-loop.ko max_loop=8\n"
    assert order in archived
    assert archived.index(b"usr/lib/modules/01-zram.ko\0") > archived.index(b"usr/lib/modules\0")


@pytest.mark.parametrize("script", [small._INIT, full._INIT, project._STAND_IN_CC])
def test_scripts_are_scripts(tmp_path: Path, script: str) -> None:
    """A shell takes each as it stands: a slip in one would be a guest that never comes up."""
    path = tmp_path / "script"
    path.write_text(script)

    done = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert script.startswith("#!/bin/")


def test_both_images_start_the_agent_with_the_ports_of_the_seam() -> None:
    """What the host connects and what the agent opens are the same, on every image."""
    command = f"/usr/bin/python3 -I -S -u {HOME}/agent.py {AGENT_PORT} {PROBE_PORT}"

    assert f"::respawn:{command}\n" in small._INITTAB
    assert f"ExecStart={command}\n" in full._AGENT_UNIT


def test_the_start_of_the_small_image_can_be_run() -> None:
    """The kernel runs /init only when it may be executed."""
    archived = small._start_archive()
    place = archived.index(b"init\0")

    assert int(archived[place - 110 + 14 : place - 110 + 22], 16) == stat.S_IFREG | 0o755


def test_the_stand_in_compiler_knows_one_source(tmp_path: Path) -> None:
    """It hands out what was compiled of that very source, and refuses any other source."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/victims.c").write_text("int main(void) { return 0; }\n")
    (home / "bin/victims").write_text("program")
    compiler = tmp_path / "cc"
    compiler.write_text(project._STAND_IN_CC.replace(HOME, str(home)))
    other = tmp_path / "other.c"
    other.write_text("int main(void) { return 1; }\n")

    def compile_it(source: Path) -> int:
        command = ["sh", str(compiler), "-O2", "-Wall", "-o", str(tmp_path / "out"), str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    refused, has_written = compile_it(other), (tmp_path / "out").exists()
    taken = compile_it(home / "bin/victims.c")

    assert (refused, has_written) == (1, False)
    assert taken == 0
    assert (tmp_path / "out").read_text() == "program"


def test_every_killer_is_installed_and_off() -> None:
    """A run starts the one it is about; one that ran beside it would be a second contestant."""
    hooks = "\n".join(full._hooks())

    assert set(full._KILLERS) <= set(full._WANTED)
    assert all(f"systemctl disable {killer}.service" in hooks for killer in full._KILLERS)
    assert not any(f"systemctl mask {killer}" in hooks for killer in full._KILLERS)
