"""Guests that are ready: booted once for each specification, saved, and started from there as often as is wanted.

``Machines.open`` is what the runner uses (``lab/seam.py``). The first time it boots the guest, waits for its agent,
sets up swap, and saves all of it to the cache; this and every later time it starts a guest from what is saved. Two
guests at once at most on one host, whoever started them: a third waits.

A saved guest goes on where it stood, with its clocks, its random numbers and its address layouts: runs from the same
one differ by what the host's timing makes of them, and by nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab import channel, qemu
from lab.cache import key_of
from lab.images.build import obtain_image
from lab.packages import LabError, install_on_host, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.cache import Cache
    from lab.images.build import Image
    from lab.packages import Archive
    from lab.seam import Heard, MachineSpec

_GUESTS_AT_ONCE = 2
# From start to the agent's first word: 6 to 10 s for the small image, 45 s for the full one on an idle host; the others
# on the host may make it several times that.
_BOOT_S = 240.0
_ASK_S = 60.0
# What a start takes about, for estimates (two cores, 25 November 2026).
_RESTORED_S = {"small": 1.0, "full": 2.0}
_BOOTED_S = {"small": 12.0, "full": 70.0}
# A saved guest is of use to the very qemu that saved it, started in the very same way.
_BUILDER = key_of([Path(__file__).read_bytes(), Path(qemu.__file__).read_bytes()])
_TOOLS = ("qemu-system-x86_64", "qemu-img", "zstd", "setpriv")
# zram first, the disk when that is full: as distributions set it up that have both.
_ZRAM_PRIORITY, _DISK_PRIORITY = 100, 10
# By its path: busybox's shell takes its own swapon before any other, and that knows no priority.
_SWAPON = "/usr/sbin/swapon"


class Machine:
    """One guest that is up; a ``lab.seam.Guest``."""

    def __init__(self, talk: channel.Channel, facts: Mapping[str, Any], console: Path) -> None:
        self.channel = talk
        self._facts = facts
        self._console = console

    @property
    def facts(self) -> Mapping[str, Any]:
        """The agent's answer to ``hello``, from when it was booted."""
        return self._facts

    @property
    def console(self) -> Path:
        """What its kernel says, since this start; gone with the guest."""
        return self._console

    def send(self, command: Mapping[str, Any]) -> None:
        """Say a command to its agent; ``GuestLostError`` if the guest has ended."""
        self.channel.send(command)

    def hear(self, timeout_s: float) -> Heard | None:
        """The next message of any port; ``GuestLostError`` if the guest has ended or is silent for too long."""
        return self.channel.hear(timeout_s)

    def ask(self, word: str, *, patience_s: float = _ASK_S, **arguments: Any) -> dict[str, Any]:
        """Say a command and wait for its answer (``lab.channel.Channel.ask``)."""
        return self.channel.ask(word, patience_s=patience_s, **arguments)


class _Saved(NamedTuple):
    memory: Path
    facts: Mapping[str, Any]
    disks: tuple[qemu.Drive, ...]


class Machines:
    """Who makes guests; a ``lab.seam.Maker``."""

    def __init__(self, cache: Cache, archive: Archive, *, silence_limit_s: float = channel.SILENCE_LIMIT_S) -> None:
        self._cache = cache
        self._archive = archive
        self._silence_limit_s = silence_limit_s
        self._images: dict[tuple[str, str], Image] = {}

    @contextlib.contextmanager
    def open(self, spec: MachineSpec) -> Iterator[Machine]:
        """A fresh machine, ready; ended with the block."""
        saved = self._obtain_saved(spec)
        design = self._design(spec, saved.disks)
        with self._started(design, saved=saved.memory) as (running, talk, directory):
            running.resume()
            yield Machine(talk, saved.facts, directory / "console")

    @contextlib.contextmanager
    def boot(self, spec: MachineSpec) -> Iterator[Machine]:
        """A machine that boots now, and is ready as one of ``open`` is."""
        with tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch:
            disks = self._make_disks(spec, Path(scratch))
            with self._booted(spec, disks) as (machine, _):
                yield machine

    def estimate_s(self, spec: MachineSpec) -> float:
        """How long ``open`` will probably take."""
        is_small = spec.image != "full"
        image = "small" if is_small else "full"
        is_there = self._place_of_saved(spec).is_dir() if (spec.image, spec.kernel) in self._images else False
        return _RESTORED_S[image] if is_there else _RESTORED_S[image] + _BOOTED_S[image]

    def _obtain_saved(self, spec: MachineSpec) -> _Saved:
        def build(place: Path) -> None:
            started_s = time.monotonic()
            say(f"booting {_in_words(spec)}")
            disks = self._make_disks(spec, place)
            with self._booted(spec, disks) as (machine, running):
                booted_s = time.monotonic() - started_s
                running.save(place / "memory")
                facts = {**machine.facts, "boot_s": round(booted_s, 1)}
                (place / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
            say(f"ready and saved after {time.monotonic() - started_s:.1f} s")

        key = self._key_of_saved(spec)
        place = self._cache.obtain("machines", _name_of(spec), key, build)
        facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        return _Saved(place / "memory", facts, self._disks_in(spec, place, is_discarded=True))

    def _place_of_saved(self, spec: MachineSpec) -> Path:
        return self._cache.directory("machines") / f"{_name_of(spec)}-{self._key_of_saved(spec)}"

    def _key_of_saved(self, spec: MachineSpec) -> str:
        image = self._image(spec)
        return key_of([repr(spec), image.key, _version_of_qemu(), _BUILDER])

    def _image(self, spec: MachineSpec) -> Image:
        known = (spec.image, spec.kernel)
        if known not in self._images:
            install_on_host(_TOOLS)
            self._images[known] = obtain_image(spec.image, spec.kernel, self._cache, self._archive)
        return self._images[known]

    def _design(self, spec: MachineSpec, disks: tuple[qemu.Drive, ...]) -> qemu.Design:
        image = self._image(spec)
        return qemu.Design(
            kernel=image.kernel.image,
            initramfs=image.initramfs,
            command_line=image.command_line,
            memory_mib=spec.memory_mib,
            cpus=spec.cpus,
            drives=disks,
        )

    def _make_disks(self, spec: MachineSpec, place: Path) -> tuple[qemu.Drive, ...]:
        """The files of the guest's disks: its root over the image's, which stays as it is, and an empty swap."""
        image = self._image(spec)
        if image.root is not None:
            _run(
                "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.root), str(place / "root.qcow2")
            )
        if spec.swap_mib:
            with (place / "swap.raw").open("wb") as swap:
                swap.truncate(spec.swap_mib << 20)
        return self._disks_in(spec, place, is_discarded=False)

    def _disks_in(self, spec: MachineSpec, place: Path, *, is_discarded: bool) -> tuple[qemu.Drive, ...]:
        disks = []
        if self._image(spec).root is not None:
            disks.append(qemu.Drive(place / "root.qcow2", "qcow2", is_discarded))
        if spec.swap_mib:
            disks.append(qemu.Drive(place / "swap.raw", "raw", is_discarded))
        return tuple(disks)

    @contextlib.contextmanager
    def _booted(self, spec: MachineSpec, disks: tuple[qemu.Drive, ...]) -> Iterator[tuple[Machine, qemu.Qemu]]:
        with self._started(self._design(spec, disks)) as (running, talk, directory):
            talk.await_event("up", _BOOT_S)
            swap_disk = "/dev/vdb" if self._image(spec).root is not None else "/dev/vda"
            for script in _scripts_of_swap(spec, swap_disk):
                _expect_success(talk.ask("run", patience_s=_ASK_S, argv=["sh", "-ec", script]), script)
            facts = talk.ask("hello", patience_s=_ASK_S)
            yield Machine(talk, facts, directory / "console"), running

    @contextlib.contextmanager
    def _started(
        self, design: qemu.Design, *, saved: Path | None = None
    ) -> Iterator[tuple[qemu.Qemu, channel.Channel, Path]]:
        with (
            _one_of_the_places(self._cache.directory("machines")),
            tempfile.TemporaryDirectory(prefix="oomreaper-lab-") as scratch,
            qemu.running(design, Path(scratch), saved=saved) as running,
        ):
            directory = Path(scratch)
            talk = channel.Channel(
                running.agent,
                running.probe,
                explain_end=lambda: _explain_end(running, directory),
                silence_limit_s=self._silence_limit_s,
            )
            yield running, talk, directory


def _scripts_of_swap(spec: MachineSpec, disk: str) -> list[str]:
    """What sets swap up in the guest, zram before the disk. Pure."""
    scripts = []
    if spec.zram_mib:
        scripts.append(
            f"echo {spec.zram_mib}M > /sys/block/zram0/disksize; mkswap /dev/zram0; "
            f"{_SWAPON} -p {_ZRAM_PRIORITY} /dev/zram0"
        )
    if spec.swap_mib:
        scripts.append(f"mkswap {disk}; {_SWAPON} -p {_DISK_PRIORITY} {disk}")
    return scripts


def _expect_success(answer: Mapping[str, Any], script: str) -> None:
    if answer["status"] != 0:
        message = f"the guest could not do: {script}\n{answer['output']}"
        raise LabError(message)


def _explain_end(running: qemu.Qemu, directory: Path) -> str:
    status = running.process.poll()
    state = "qemu still runs" if status is None else f"qemu has ended with {status}"
    words = [qemu.end_of(directory / name) for name in ("console", "qemu.log")]
    return "\n".join([state, *filter(None, words)])


@contextlib.contextmanager
def _one_of_the_places(directory: Path) -> Iterator[None]:
    """Wait for a place for a guest on this host; the place is given back with its holder, however that ends."""
    locks = [(directory / f".place-{number}").open("w", encoding="ascii") for number in range(_GUESTS_AT_ONCE)]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        has_told = False
        while not any(_is_taken_now(lock.fileno()) for lock in locks):
            if not has_told:
                say(f"{_GUESTS_AT_ONCE} guests run on this host already: waiting for one to end")
                has_told = True
            time.sleep(0.5)
        yield


def _is_taken_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name_of(spec: MachineSpec) -> str:
    return f"{spec.image}-{spec.kernel}-{spec.memory_mib}m-{spec.cpus}c-{spec.zram_mib}z-{spec.swap_mib}s"


def _in_words(spec: MachineSpec) -> str:
    swap = " and ".join(
        f"{size_mib} MiB of {kind}" for kind, size_mib in (("zram", spec.zram_mib), ("swap", spec.swap_mib)) if size_mib
    )
    return f"{spec.image} image, kernel {spec.kernel}, {spec.memory_mib} MiB, {swap or 'no swap'}"


def _version_of_qemu() -> str:
    done = subprocess.run([qemu.PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"{' '.join(command[:3])} … failed:\n{done.stderr.strip()}"
        raise LabError(message)
