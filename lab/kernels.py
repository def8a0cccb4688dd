"""Kernels by name: Debian's cloud kernels, unpacked.

``6.1`` and ``6.12`` are two series that are still in wide use; ``newest`` is what Debian packages last. A kernel here
is its image and its modules, uncompressed, so that a guest needs no more than insmod.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lab.packages import Archive, LabError, Package, key_of_packages, say, unpack

if TYPE_CHECKING:
    from lab.cache import Cache

_META = "linux-image-cloud-amd64"
# Suites by name, tried in this order for the newest version of all of them.
SUITES = {"6.1": ("bookworm",), "6.12": ("bookworm-backports",), "newest": ("trixie-backports", "sid")}
# The packages of a kernel that hold files a guest needs; of late the image is divided among several.
_PARTS = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")


class Kernel(NamedTuple):
    """A kernel, ready to be started."""

    name: str
    """What the lab calls it."""
    release: str
    """What it calls itself (uname -r)."""
    version: str
    """Debian's version of the package."""
    image: Path
    modules: Path
    """The directory of its release, with ``kernel/`` inside."""


def obtain_kernel(name: str, cache: Cache, archive: Archive) -> Kernel:
    """A kernel from the cache, or from Debian.

    Raises:
        LabError: there is no kernel of that name, or it cannot be had.
    """
    if name not in SUITES:
        message = f"no kernel is called {name}; there are {', '.join(SUITES)}"
        raise LabError(message)
    metas = [(archive.find(_META, suite), suite) for suite in SUITES[name]]
    meta, suite = max(metas, key=lambda pair: version_key(pair[0].version))
    packages = _parts_of(meta, suite, archive)

    def build(place: Path) -> None:
        say(f"unpacking the kernel {name} ({meta.version})")
        with tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch:
            tree = Path(scratch) / "tree"
            unpack(archive.download(packages, Path(scratch)), tree)
            _keep(tree, place)

    place = cache.obtain("kernels", name, key_of_packages(packages), build)
    (modules,) = (place / "modules").iterdir()
    return Kernel(name, modules.name, meta.version, place / "vmlinuz", modules)


def version_key(version: str) -> tuple[int, ...]:
    """What upstream versions of kernels are compared by: the numbers before Debian's own."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0]))


def _parts_of(meta: Package, suite: str, archive: Archive) -> list[Package]:
    """The packages that hold the image and the modules."""
    wanted = [_image_named_by(meta)]
    parts = []
    while wanted:
        package = archive.find(wanted.pop(0), suite)
        parts.append(package)
        named = re.findall(r"(linux-[\w.+-]+) \(= ", package.depends)
        wanted += [name for name in named if name.startswith(_PARTS) and name not in {part.name for part in parts}]
    return sorted(set(parts))


def _image_named_by(meta: Package) -> str:
    found = re.search(r"linux-image-\d[\w.+-]*", meta.depends)
    if found is None:
        message = f"{meta.name} {meta.version} names no image: {meta.depends}"
        raise LabError(message)
    return found.group()


def _keep(tree: Path, place: Path) -> None:
    """Move what a guest needs out of an unpacked tree; modules are written uncompressed."""
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    releases = [path for path in (*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")) if path.is_dir()]
    if len(images) != 1 or not releases:
        message = f"expected one image and its modules, found {images} and {releases}"
        raise LabError(message)
    shutil.move(images[0], place / "vmlinuz")
    for release in releases:
        for source in sorted(release.rglob("*.ko*")):
            target = place / "modules" / source.relative_to(release.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".xz":
                target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
            else:
                shutil.move(source, target)


def modules_in_order(kernel: Kernel, names: tuple[str, ...]) -> list[Path]:
    """The files of modules and of what they need, each after what it needs; what is built in has no file.

    The order comes from the modules themselves (their ``depends=``): Debian's packages have no modules.dep, depmod
    makes it at installation.
    """
    files = {path.stem.replace("-", "_"): path for path in kernel.modules.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return
        for needed in read_depends(path):
            add(needed)
        ordered.append(path)

    for name in names:
        add(name)
    return ordered


def read_depends(module: Path) -> list[str]:
    """The modules that a module needs; source: its ``depends=`` in .modinfo."""
    found = re.search(rb"\x00depends=([^\x00]*)\x00", module.read_bytes())
    return [name.decode() for name in found.group(1).split(b",") if name] if found else []
