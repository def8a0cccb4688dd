"""Where the lab keeps what it downloads and builds, and how much disk that takes.

Knows directories, digests and renames; nothing of what is kept. Each thing has a kind (``kernels``, ``small``), a name,
and a key made of everything it was made from: other inputs make another key, so nothing kept is ever out of date.

A thing is built in a directory beside its place and moved there when it is whole: what is in place is whole, and a
build that was interrupted leaves nothing but that directory, which the next build of its kind removes.

Of each name the keys that were used last stay, the others go when a new one is built: whoever works on the lab does not
fill his disk with every state it ever was in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VARIABLE = "OOMREAPER_LAB_CACHE"
# Digits of a key: 64 bits, far more than a cache of some dozen things needs to keep two of them apart.
_KEY_DIGITS = 16
_UNFINISHED = ".unfinished"
# One in use and the one before it: two checkouts, or a change that is taken back, do not build in turns.
_KEYS_KEPT = 2


class Kept(NamedTuple):
    """One thing in the cache."""

    kind: str
    name: str
    path: Path
    disk_bytes: int


class Cache:
    """The directory of all that is kept; it is made when it is first needed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()

    def directory(self, kind: str) -> Path:
        """The place for things of one kind, which exists then."""
        place = self.root / kind
        place.mkdir(parents=True, exist_ok=True)
        return place

    def obtain(self, kind: str, name: str, key: str, build: Callable[[Path], None]) -> Path:
        """The directory of a thing; ``build`` is called with an empty directory to fill when there is none yet.

        Two who want the same thing at the same time: the second waits, and finds it there.
        """
        place = self.directory(kind) / f"{name}-{key}"
        if not place.is_dir():
            with self._locked(kind):
                if not place.is_dir():
                    for left_behind in place.parent.glob(f"*{_UNFINISHED}"):
                        shutil.rmtree(left_behind, ignore_errors=True)
                    unfinished = place.with_name(place.name + _UNFINISHED)
                    unfinished.mkdir()
                    build(unfinished)
                    unfinished.rename(place)
                    _drop_unused(place, len(key))
        # The time of its last use.
        os.utime(place)
        return place

    def list_kept(self) -> list[Kept]:
        """Everything in it, whole or not, by kind and name."""
        if not self.root.is_dir():
            return []
        kinds = sorted(path for path in self.root.iterdir() if path.is_dir())
        things = [path for kind in kinds for path in sorted(kind.iterdir()) if not path.name.startswith(".")]
        return [Kept(path.parent.name, path.name, path, disk_bytes(path)) for path in things]

    @contextlib.contextmanager
    def _locked(self, kind: str) -> Iterator[None]:
        """Alone with the things of one kind; the lock goes with its holder, however that ends."""
        with (self.directory(kind) / ".lock").open("w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _drop_unused(place: Path, key_length: int) -> None:
    """Remove what has the same name and was used longest ago. A guest that runs has its files open: it is not hurt."""
    name = place.name[:-key_length]
    others = [path for path in place.parent.iterdir() if path != place and path.name[:-key_length] == name]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_KEYS_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def default_root() -> Path:
    """What the variable says; else the user's cache directory."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "oomreaper-lab"


def key_of(parts: Iterable[str | bytes]) -> str:
    """A key of what a thing is made from: the parts and their order count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:_KEY_DIGITS]


def key_of_files(root: Path, paths: Iterable[Path]) -> str:
    """A key of files: their names below ``root``, their modes' x bit and what is in them."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        is_executable = os.access(path, os.X_OK)
        parts += [str(path.relative_to(root)), "x" if is_executable else "-", path.read_bytes()]
    return key_of(parts)


def disk_bytes(path: Path) -> int:
    """What a file or a directory takes on the disk; a hole takes nothing."""
    # st_blocks is in units of 512 bytes whatever the file system's own are.
    taken = path.lstat().st_blocks * 512
    if path.is_dir() and not path.is_symlink():
        taken += sum(disk_bytes(inner) for inner in path.iterdir())
    return taken
