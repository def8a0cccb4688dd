"""The kernel's initramfs, written by hand: cpio in its "newc" format. Needs no root and no tool.

An initramfs may be several archives, one after the other, which are unpacked over each other: what changes often (our
own code) is an archive apart from what hardly does (Python). Each begins at a multiple of four bytes, as the format
wants.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, NamedTuple

_MAGIC = b"070701"
_END = "TRAILER!!!"
_ALIGNMENT = 4


class Node(NamedTuple):
    """One entry: a directory, a file, a link or a device. ``name`` is relative to the root."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Node:
    """A directory that everybody may enter."""
    return Node(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, is_executable: bool = False) -> Node:
    """A file of root's."""
    return Node(name, stat.S_IFREG | (0o755 if is_executable else 0o644), data)


def link(name: str, target: str) -> Node:
    """A symbolic link."""
    return Node(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int) -> Node:
    """A character device; only the very first ones are needed, devtmpfs brings the others."""
    return Node(name, stat.S_IFCHR | 0o600, b"", (major, minor))


def nodes_of(tree: Path) -> list[Node]:
    """All that is below a directory, parents first; everything becomes root's."""
    nodes = []
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        name = str(path.relative_to(tree))
        if stat.S_ISLNK(mode):
            nodes.append(Node(name, mode, os.readlink(path).encode()))
        elif stat.S_ISDIR(mode):
            nodes.append(Node(name, mode))
        elif stat.S_ISREG(mode):
            nodes.append(Node(name, mode, path.read_bytes()))
    return nodes


def with_parents(nodes: list[Node]) -> list[Node]:
    """The nodes with every directory above them that is not among them, each before what is in it."""
    known = {node.name for node in nodes}
    missing = {str(parent) for node in nodes for parent in Path(node.name).parents if str(parent) not in {".", *known}}
    return [*(directory(name) for name in sorted(missing)), *nodes]


def write(nodes: list[Node], out: IO[bytes]) -> None:
    """One archive: the nodes and the end mark."""
    for number, node in enumerate(nodes, start=1):
        _write_entry(out, node, number)
    _write_entry(out, Node(_END, 0), 0)


def _write_entry(out: IO[bytes], node: Node, number: int) -> None:
    name = node.name.encode() + b"\x00"
    # Inode, mode, uid, gid, links, time, size, device of the file, device it is, length of the name, checksum (unused).
    fields = (number, node.mode, 0, 0, 1, 0, len(node.data), 0, 0, *node.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    _write_padded(out, header + name)
    _write_padded(out, node.data)


def _write_padded(out: IO[bytes], data: bytes) -> None:
    out.write(data + bytes(-len(data) % _ALIGNMENT))
