"""The initramfs that is written by hand, read back field by field as the kernel's documentation has the format."""

from __future__ import annotations

import io
import stat
from typing import TYPE_CHECKING, NamedTuple

from lab.images import archive
from lab.images.archive import Node

if TYPE_CHECKING:
    from pathlib import Path


class _Entry(NamedTuple):
    name: str
    mode: int
    data: bytes
    device: tuple[int, int]


def _read(data: bytes) -> list[_Entry]:
    """The entries up to the end mark; positions as in the kernel's buffer-format.rst."""
    entries: list[_Entry] = []
    offset = 0
    while True:
        header = data[offset : offset + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = data[offset + 110 : offset + 110 + name_size]
        assert name[-1] == 0
        start = (offset + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            return entries
        entries.append(_Entry(name[:-1].decode(), mode, data[start : start + size], (major, minor)))
        offset = (start + size + 3) & ~3


def _written(nodes: list[Node]) -> bytes:
    out = io.BytesIO()
    archive.write(nodes, out)
    return out.getvalue()


def test_every_kind_of_node_is_read_back() -> None:
    """Names and data of any length, modes, devices and links' targets are where the kernel looks for them."""
    nodes = [
        archive.directory("dev"),
        archive.character_device("dev/console", 5, 1),
        archive.file("init", b"#!/bin/sh\n", is_executable=True),
        *(archive.file("n" * length, b"d" * length) for length in range(1, 9)),
        archive.link("usr/bin/python3", "python3.13"),
    ]

    entries = _read(_written(nodes))

    assert [(node.name, node.mode, node.data, node.device) for node in nodes] == [tuple(entry) for entry in entries]
    assert stat.S_ISCHR(entries[1].mode)
    assert stat.S_IMODE(entries[2].mode) == 0o755


def test_an_archive_can_follow_another() -> None:
    """Each archive's length is a multiple of four bytes, which is where the kernel looks for the next."""
    first = _written([archive.file("one", b"1")])
    second = _written([archive.file("two", b"22")])

    assert len(first) % 4 == 0
    assert [entry.name for entry in _read((first + second)[len(first) :])] == ["two"]


def test_a_tree_is_taken_as_it_is(tmp_path: Path) -> None:
    """Links stay links, also those that point nowhere; a directory comes before what is in it."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/tool").write_bytes(b"code")
    (tmp_path / "usr/bin/tool").chmod(0o755)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "gone").symlink_to("nowhere")

    nodes = archive.nodes_of(tmp_path)

    assert [node.name for node in nodes] == ["bin", "gone", "usr", "usr/bin", "usr/bin/tool"]
    assert [node.data for node in nodes if stat.S_ISLNK(node.mode)] == [b"usr/bin", b"nowhere"]
    assert stat.S_IMODE(nodes[-1].mode) == 0o755


def test_directories_above_are_added_once() -> None:
    """The kernel makes no directory by itself: each one above a node is there, before it, unless it is a node."""
    nodes = archive.with_parents([archive.link("lib", "usr/lib"), archive.file("usr/lib/a/b", b"")])

    assert [node.name for node in nodes] == ["usr", "usr/lib", "usr/lib/a", "lib", "usr/lib/a/b"]
