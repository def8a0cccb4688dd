"""Kernels by name: which package, which modules, in which order."""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import pytest

from lab import kernels
from lab.kernels import Kernel, modules_in_order, read_depends, version_key
from lab.packages import LabError, Package

if TYPE_CHECKING:
    from pathlib import Path


def _module(path: Path, *depends: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\x00license=GPL\x00depends=" + ",".join(depends).encode() + b"\x00retpoline=Y\x00")


def _kernel(modules: Path) -> Kernel:
    return Kernel("newest", "7.3", "7.3-1", modules.parent / "vmlinuz", modules)


def test_newer_is_newer_by_numbers() -> None:
    """7.10 comes after 7.9, and what Debian adds does not count."""
    versions = ["6.12.95-1~bpo12+1", "7.9.1-1", "7.10-1~bpo13+1", "6.1.176-1"]

    assert sorted(versions, key=version_key) == ["6.1.176-1", "6.12.95-1~bpo12+1", "7.9.1-1", "7.10-1~bpo13+1"]


def test_a_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    """Needs of needs too, each once; names with - and _ are the same, as the kernel has it."""
    modules = tmp_path / "modules"
    _module(modules / "kernel/drivers/block/zram.ko", "zsmalloc", "lz4-compress")
    _module(modules / "kernel/mm/zsmalloc.ko")
    _module(modules / "kernel/lib/lz4_compress.ko")
    _module(modules / "kernel/fs/other.ko", "zsmalloc")

    ordered = modules_in_order(_kernel(modules), ("zram", "other"))

    assert [path.stem for path in ordered] == ["zsmalloc", "lz4_compress", "zram", "other"]


def test_what_is_built_in_is_passed_over(tmp_path: Path) -> None:
    """A module without a file is in the kernel already: it is no fault."""
    modules = tmp_path / "modules"
    _module(modules / "kernel/loop.ko", "built-in-thing")

    assert [path.stem for path in modules_in_order(_kernel(modules), ("fuse", "loop"))] == ["loop"]


def test_a_module_that_needs_nothing_says_so(tmp_path: Path) -> None:
    """An empty depends= is no need of a nameless module."""
    _module(tmp_path / "a.ko")
    _module(tmp_path / "b.ko", "x", "y_z")

    assert read_depends(tmp_path / "a.ko") == []
    assert read_depends(tmp_path / "b.ko") == ["x", "y_z"]


def test_the_image_is_the_one_that_the_meta_package_names() -> None:
    """Debian's meta package depends on the kernel of the day, among others."""
    depends = "linux-base-cloud-amd64 (= 7.3.4-1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)"
    meta = Package("linux-image-cloud-amd64", "7.3.4-1", "", depends)

    assert kernels._image_named_by(meta) == "linux-image-7.3.4+deb13-cloud-amd64"
    with pytest.raises(LabError, match="names no image"):
        kernels._image_named_by(meta._replace(depends="linux-base"))


@pytest.mark.parametrize("prefix", ["", "usr/"])
@pytest.mark.parametrize("image", ["boot/vmlinuz-7.3", "usr/lib/modules/7.3/vmlinuz"])
def test_image_and_modules_are_found_where_either_layout_has_them(tmp_path: Path, image: str, prefix: str) -> None:
    """Until 6.x in /boot and /lib, since 7.x below /usr; compressed modules are written plain."""
    tree, place = tmp_path / "tree", tmp_path / "place"
    place.mkdir()
    (tree / image).parent.mkdir(parents=True)
    (tree / image).write_bytes(b"kernel")
    directory = tree / prefix / "lib/modules/7.3/kernel"
    _module(directory / "plain.ko")
    (directory / "packed.ko.xz").write_bytes(lzma.compress(b"module"))

    kernels._keep(tree, place)

    assert (place / "vmlinuz").read_bytes() == b"kernel"
    assert (place / "modules/7.3/kernel/packed.ko").read_bytes() == b"module"
    assert {path.name for path in (place / "modules/7.3/kernel").iterdir()} == {"plain.ko", "packed.ko"}


def test_a_package_without_an_image_is_refused(tmp_path: Path) -> None:
    """A layout that is not known is told; no half kernel is kept."""
    (tmp_path / "tree/lib/modules/7.3").mkdir(parents=True)

    with pytest.raises(LabError, match="expected one image"):
        kernels._keep(tmp_path / "tree", tmp_path)
