"""The full image: a Debian with systemd as pid 1, every peer from its package, and ours as a package would install it.

Three layers. The *root* is what mmdebstrap makes of packages, as a disk image that nothing ever writes to. The
*project* (our package from its own wheel, its unit, the lab's guest programs) is put on top of it at each boot by the
initramfs, so that a change of our code does not cost a new root. What a guest writes goes to a layer of its own
(lab/machine.py).

Every killer is installed and none is enabled: a run starts the one it is about. Nothing else of the packages' own
settings is touched; what Debian does by timers (apt, fstrim, e2scrub) is off, since it would disturb some runs and not
others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cache import Cache, key_of, key_of_files
from lab.images import archive, small
from lab.images.base import compile_python
from lab.images.project import ROOT, obtain_programs, write_archive
from lab.packages import KEYRING, MIRROR, LabError, install_on_host, key_of_packages, say
from lab.seam import AGENT_PORT, HOME, PROBE_PORT

if TYPE_CHECKING:
    from lab.kernels import Kernel
    from lab.packages import Archive

# The newest packaged versions of the peers are here.
_SUITE = "sid"
_KILLERS = ("earlyoom", "nohang", "systemd-oomd", "oomd")
_WANTED = (
    "systemd-sysv",
    "dbus",
    # A user's own manager, below which some of the killers look, has a runtime directory by this only.
    "libpam-systemd",
    "udev",
    "kmod",
    "util-linux",
    "e2fsprogs",
    "busybox-static",
    "python3",
    "python3-voluptuous",
    "stress-ng",
    "runc",
    *_KILLERS,
)
# Units that are off; those that no package of this day has are none the worse for it.
_OFF = (
    "earlyoom.service",
    "nohang.service",
    "nohang-desktop.service",
    "systemd-oomd.service",
    "systemd-oomd.socket",
    "oomd.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-networkd.service",
)
# nohang's own installation needs its examples.
_DPKG = ("path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/nohang/*", "path-exclude=/usr/share/man/*")
# Of the root's disk: what is installed takes a fifth of it; the rest costs nothing until a guest writes to it.
_DISK_MIB = 3072
_INSIDE = HOME.lstrip("/")
_SITE = "usr/lib/python3/dist-packages"
_COMMAND = b"""\
#!/usr/bin/python3
from oomreaper.faces.cli import main

raise SystemExit(main())
"""
# Started early and without a wish of its own: it answers as soon as the machine is up, and says when that is.
_AGENT_UNIT = f"""\
[Unit]
Description=The lab's agent
After=multi-user.target

[Service]
ExecStart=/usr/bin/python3 -I -S -u {HOME}/agent.py {AGENT_PORT} {PROBE_PORT}
Restart=always
OOMScoreAdjust=-1000
OOMPolicy=continue
LimitMEMLOCK=infinity
TasksMax=infinity
StandardOutput=journal

[Install]
WantedBy=multi-user.target
"""
_INIT = f"""\
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /newroot
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
while read -r module; do busybox insmod $module; done < /{small.MODULES_ORDER}
busybox mount -t ext4 /dev/vda /newroot
busybox cp -a /project/. /newroot/
busybox umount /proc
busybox mount -o move /dev /newroot/dev
exec busybox switch_root /newroot /sbin/init
"""
_BUILDER = key_of(Path(path).read_bytes() for path in (__file__, archive.__file__, small.__file__))


def obtain_full(kernel: Kernel, cache: Cache, packages: Archive) -> tuple[Path, Path]:
    """The initramfs for a kernel, and the root's disk, which must not be written to.

    Raises:
        LabError: it cannot be built; without root it cannot.
    """
    root = _obtain_root(cache, packages)
    project = _obtain_project(cache, root / "tree")
    modules = small.obtain_modules(kernel, cache)

    def build(place: Path) -> None:
        with (place / "initramfs").open("wb") as whole:
            nodes = [
                archive.file("init", _INIT.encode(), is_executable=True),
                archive.file("bin/busybox", (root / "tree/usr/bin/busybox").read_bytes(), is_executable=True),
                archive.character_device("dev/console", 5, 1),
                archive.character_device("dev/null", 1, 3),
            ]
            archive.write(archive.with_parents(nodes), whole)
            whole.write((modules / "modules.cpio").read_bytes())
            whole.write((project / "project.cpio").read_bytes())

    key = key_of([_BUILDER, root.name, project.name, modules.name])
    return cache.obtain("initramfs", f"full-{kernel.name}", key, build) / "initramfs", root / "root.raw"


def _obtain_root(cache: Cache, packages: Archive) -> Path:
    found = packages.closure(_WANTED, _SUITE)

    def build(place: Path) -> None:
        if os.geteuid() != 0:
            message = "the full image can be built by root only: its files belong to many users"
            raise LabError(message)
        install_on_host(["mmdebstrap", "mkfs.ext4"])
        say(f"building the full image from {len(found)} packages: about a minute")
        _install(place / "tree")
        say("writing its disk")
        _make_disk(place / "tree", place / "root.raw")

    return cache.obtain("full", "root", key_of([_BUILDER, key_of_packages(found)]), build)


def _install(tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch:
        sources = Path(scratch) / "debian.sources"
        sources.write_text(f"Types: deb\nURIs: {MIRROR}\nSuites: {_SUITE}\nComponents: main\nSigned-By: {KEYRING}\n")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_WANTED)}"]
        command += ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=APT::Install-Recommends "false"']
        command += [f"--dpkgopt={option}" for option in _DPKG]
        command += [f"--customize-hook={hook}" for hook in _hooks()]
        _run([*command, _SUITE, str(tree), str(sources)])


def _hooks() -> list[str]:
    """What is done to the root once its packages are installed; ``$1`` is the root."""
    hooks = [f'chroot "$1" systemctl disable {unit} || true' for unit in _OFF]
    # Masked, since a dependency or a socket of another unit could start them; a run unmasks none of the killers.
    hooks += [f'chroot "$1" systemctl mask {unit}' for unit in _OFF if unit.endswith(".timer")]
    hooks += [
        'chroot "$1" groupadd -g 1001 one && chroot "$1" useradd -u 1001 -g 1001 -m -s /bin/bash one',
        'chroot "$1" groupadd -g 1002 two && chroot "$1" useradd -u 1002 -g 1002 -m -s /bin/bash two',
        'mkdir -p "$1/etc/systemd/journald.conf.d"',
        'printf "[Journal]\\nStorage=volatile\\n" > "$1/etc/systemd/journald.conf.d/lab.conf"',
        'echo lab > "$1/etc/hostname"',
        # With none of its own it would be a first boot, which asks questions.
        'echo 6f6f6d7265617065726c616200000000 > "$1/etc/machine-id"',
        'echo "kernel.hung_task_timeout_secs = 0" > "$1/etc/sysctl.d/lab.conf"',
        'rm -rf "$1/var/cache/apt" "$1/var/lib/apt/lists"',
    ]
    return hooks


def _make_disk(tree: Path, disk: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    _run(["mkfs.ext4", "-q", "-F", "-L", "lab", "-d", str(tree), str(disk)])


def _obtain_project(cache: Cache, tree: Path) -> Path:
    programs = obtain_programs(cache)
    sources = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sources += [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE", ROOT / "packaging/oomreaper.service"]
    guest = [path for path in (ROOT / "lab/guest").iterdir() if path.suffix == ".py"]
    victims = [ROOT / "tests/__init__.py", *(ROOT / "tests/victims").glob("*.py")]

    def build(place: Path) -> None:
        say("building our wheel for the full image")
        inside = place / "tree/project"
        home = inside / _INSIDE
        _unpack_own_wheel(inside / _SITE)
        _write(inside / "usr/bin/oomreaper", _COMMAND, mode=0o755)
        _write(inside / "usr/lib/systemd/system/oomreaper.service", (ROOT / "packaging/oomreaper.service").read_bytes())
        _write(inside / "usr/lib/systemd/system/lab-agent.service", _AGENT_UNIT.encode())
        wants = inside / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (wants / "lab-agent.service").symlink_to("/usr/lib/systemd/system/lab-agent.service")
        for path in guest:
            _write(home / path.name, path.read_bytes())
        for path in victims:
            _write(home / path.relative_to(ROOT), path.read_bytes())
        for path in programs.iterdir():
            _write(home / "bin" / path.name, path.read_bytes(), mode=0o755)
        _make_container(home / "container/rootfs", tree, programs)
        compile_python(tree, [home, inside / _SITE])
        write_archive(place / "tree", place / "project.cpio")

    parts = [_BUILDER, tree.parent.name, programs.name, key_of_files(ROOT, [*sources, *guest, *victims])]
    return cache.obtain("project", "full", key_of(parts), build)


def _unpack_own_wheel(site: Path) -> None:
    """As an installer does with a wheel of pure Python; its command is written apart."""
    with tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch:
        _run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch, str(ROOT)])
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archived:
            archived.extractall(site)


def _make_container(rootfs: Path, tree: Path, programs: Path) -> None:
    """What runs in a container: busybox, and the workload where it may run."""
    _write(rootfs / "bin/busybox", (tree / "usr/bin/busybox").read_bytes(), mode=0o755)
    (rootfs / "bin/sh").symlink_to("busybox")
    _write(rootfs / _INSIDE / "bin/workload", (programs / "workload").read_bytes(), mode=0o755)
    for name in ("proc", "sys", "dev", "tmp"):
        (rootfs / name).mkdir()


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"{' '.join(command[:3])} … failed:\n{(done.stdout + done.stderr).strip()[-3000:]}"
        raise LabError(message)
