"""Who is compared: the kernel alone, each peer, and ours; how each is started, and where its settings come from.

Each runs alone. ``default`` are the settings that its package comes with, untouched. ``tuned`` are the best that its
own pages name, for a machine that is used by people; where each comes from stands beside it and in the report. Nobody
is told anything of a scenario: no name of one of its programs stands in any settings.

On the small image there is no service manager: there only the kernel and ours can be had, ours as a plain process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lab.seam import HOME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT, TUNED = "default", "tuned"
SMALL, FULL = "small", "full"
# Nobody needs as long to say that it watches; a guest that is emulated takes its time to start an interpreter.
READY_LIMIT_S = 60.0


class Process(NamedTuple):
    """Started by the agent itself. It watches when a line of it holds ``ready``."""

    argv: tuple[str, ...]
    ready: str
    env: Mapping[str, str] = {}
    oom_score_adj: int = 0
    nice: int = 0


class Service(NamedTuple):
    """A unit of the service manager. ``files`` are written first, by path; then the manager reads its units again."""

    unit: str
    files: Mapping[str, str] = {}
    also: tuple[tuple[str, ...], ...] = ()
    """Commands that are run before it is started."""


class Contestant(NamedTuple):
    """One killer with one choice of settings.

    ``ways`` says how it is started on an image; None: there is nothing to start. ``version`` is a command that prints
    its version; empty: the kernel's. ``source`` says where the settings come from.
    """

    name: str
    settings: str
    ways: Mapping[str, Process | Service | None]
    source: str
    version: tuple[str, ...] = ()
    workers: str = "\0"
    """How the names of its own helpers begin, which it ends and starts anew as it likes; no name begins with NUL."""

    @property
    def title(self) -> str:
        """Its name, and its settings where they are not the packaged ones."""
        return self.name if self.settings == DEFAULT else f"{self.name} ({self.settings})"

    @property
    def key(self) -> tuple[str, str]:
        """What makes it one contestant and no other."""
        return self.name, self.settings


def _package_version(package: str) -> tuple[str, ...]:
    return ("dpkg-query", "-W", "-f", "${Version}", package)


_KERNEL = Contestant(
    name="kernel",
    settings=DEFAULT,
    ways={SMALL: None, FULL: None},
    source="the kernel's own OOM killer, as it is when nobody helps",
)
_OURS = Contestant(
    name="oomreaper",
    settings=DEFAULT,
    ways={
        SMALL: Process(
            ("python3", "-m", "oomreaper", "run"),
            ready="ready after",
            env={"PYTHONPATH": f"{HOME}/src"},
            # As its unit has it.
            oom_score_adj=-1000,
            nice=-20,
        ),
        FULL: Service("oomreaper.service"),
    },
    source="no settings file; packaging/oomreaper.service on the full image",
    version=("python3", "-c", "import oomreaper; print(oomreaper.__version__)"),
    workers="oomreaper/",
)
_EARLYOOM = Contestant(
    name="earlyoom",
    settings=DEFAULT,
    ways={FULL: Service("earlyoom.service")},
    source="/etc/default/earlyoom as packaged",
    version=_package_version("earlyoom"),
)
_EARLYOOM_TUNED = _EARLYOOM._replace(
    settings=TUNED,
    # Two of the examples in the packaged file, together; without quotes, which systemd would hand over as part of the
    # pattern.
    ways={
        FULL: Service(
            "earlyoom.service",
            files={"/etc/default/earlyoom": "EARLYOOM_ARGS=-r 3600 -m 15 -s 5 --avoid (^|/)(init|X|sshd|firefox)$\n"},
        )
    },
    source="the examples in its /etc/default/earlyoom: -m 15 -s 5, --avoid '(^|/)(init|X|sshd|firefox)$'",
)
_NOHANG = Contestant(
    name="nohang",
    settings=DEFAULT,
    ways={FULL: Service("nohang.service")},
    source="/etc/nohang/nohang.conf as packaged",
    version=_package_version("nohang"),
)
_NOHANG_TUNED = _NOHANG._replace(
    settings=TUNED,
    ways={FULL: Service("nohang-desktop.service")},
    source="/etc/nohang/nohang-desktop.conf, which nohang(8) names for desktops",
)
_SYSTEMD_OOMD = Contestant(
    name="systemd-oomd",
    settings=DEFAULT,
    ways={FULL: Service("systemd-oomd.service")},
    source="oomd.conf and the units' drop-ins as packaged",
    version=_package_version("systemd-oomd"),
)
_SYSTEMD_OOMD_TUNED = _SYSTEMD_OOMD._replace(
    settings=TUNED,
    # systemd-oomd.service(8), "Usage recommendations": swap on the root slice, 40 % on user@UID.service, 60 % on
    # system.slice. Debian's package has swap on the root slice and 50 % for 20 s on user@UID.service by itself.
    ways={
        FULL: Service(
            "systemd-oomd.service",
            files={
                "/etc/systemd/system/-.slice.d/lab.conf": "[Slice]\nManagedOOMSwap=kill\n",
                "/etc/systemd/system/user@.service.d/lab.conf": "[Service]\nManagedOOMMemoryPressure=kill\n"
                "ManagedOOMMemoryPressureLimit=40%\n",
                "/etc/systemd/system/system.slice.d/lab.conf": "[Slice]\nManagedOOMMemoryPressure=kill\n"
                "ManagedOOMMemoryPressureLimit=60%\n",
            },
        )
    },
    source="systemd-oomd.service(8), usage recommendations: swap on -.slice, pressure 40 % on user@UID.service and "
    "60 % on system.slice",
)
_OOMD = Contestant(
    name="oomd",
    settings=DEFAULT,
    ways={FULL: Service("oomd.service")},
    # Its pages name no better file; docs/production_setup.md wants swap of the size of memory, which is the machine's.
    source='/etc/oomd/oomd.json as packaged ("basic configuration for a desktop")',
    version=_package_version("oomd"),
)
CONTESTANTS = (
    _KERNEL,
    _OURS,
    _EARLYOOM,
    _EARLYOOM_TUNED,
    _NOHANG,
    _NOHANG_TUNED,
    _SYSTEMD_OOMD,
    _SYSTEMD_OOMD_TUNED,
    _OOMD,
)
# Of each kernel but the newest: ours, the kernel alone, and the one peer that most people know.
ON_OLDER_KERNELS = (_KERNEL, _OURS, _EARLYOOM)
OURS = _OURS


def find_contestants(names: Sequence[str] | None) -> tuple[Contestant, ...]:
    """Those of these names (``earlyoom``: with each of its settings; ``earlyoom/tuned``: with these); None: all.

    Raises:
        KeyError: There is none of that name.
    """
    if names is None:
        return CONTESTANTS
    found: list[Contestant] = []
    for name in names:
        wanted, _, settings = name.partition("/")
        of_name = [each for each in CONTESTANTS if each.name == wanted and settings in ("", each.settings)]
        if not of_name:
            raise KeyError(name)
        found += [each for each in of_name if each not in found]
    return tuple(found)
