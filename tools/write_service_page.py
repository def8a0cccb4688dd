"""Write docs/man/oomreaper.service.8 from packaging/oomreaper.service and the table of capabilities (``make docs``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from oomreaper import __version__
from oomreaper.linux.privileges import NEEDED

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "packaging" / "oomreaper.service"
PAGE = ROOT / "docs" / "man" / "oomreaper.service.8"

_DESCRIPTION = """\
.B oomreaper.service
runs the watcher,
.B oomreaper run,
as root. It kills and reaps a process before the machine stalls for want of memory.
.PP
.B systemctl reload oomreaper
has it read its settings again. A file with faults changes nothing; the journal and
.B systemctl status
say so.
.B Type=notify\\-reload
needs systemd 253; with an older one write
.B Type=notify
and
.B ExecReload=kill \\-HUP $MAINPID
into an override."""

_INSTALL = """\
.nf
install \\-m 644 packaging/oomreaper.service /etc/systemd/system/
systemctl daemon\\-reload
systemctl enable \\-\\-now oomreaper
.fi
.PP
Change it with
.B systemctl edit oomreaper,
which an update leaves alone."""

_NOT_SET = {
    "ProtectControlGroups": "it writes to control groups: memory.reclaim, cgroup.kill, event listeners, cgroup.procs",
    "ProtectProc": "other users' processes would not be seen, and so never chosen",
    "ProcSubset": "/proc/meminfo, /proc/vmstat and /proc/pressure would be hidden",
    "PrivateUsers": "capabilities would not count for other users' processes, real-time priority and locked memory",
    "PrivatePIDs": "the processes that are to be watched would not be seen",
    "RestrictRealtime": "the reaper wins its race with a victim's exit by the lowest real-time priority",
    "MemoryDenyWriteExecute": (
        "Python's ctypes needs such a page with an older libffi, and so do hooks in languages that compile as they run"
    ),
    "MemoryMax": "a limit of its own would have it killed or throttled in the moment in which it is needed",
    "MemoryHigh": "the same",
    "User": "an ordinary user may signal his own processes only; for that start oomreaper run in his session",
}

_FOR_HOOKS = {
    "NoNewPrivileges": "sudo, su and setuid programs do not work",
    "CapabilityBoundingSet": "root without CAP_SETUID: runuser does not work; systemd-run \\-\\-user \\-M does",
    "RestrictAddressFamilies": "no network: add AF_INET AF_INET6 for a hook that posts somewhere",
    "PrivateTmp": "sockets in /tmp (X11) are not seen",
    "ProtectSystem": "files can be written in /run/oomreaper and /tmp only: add ReadWritePaths=",
    "ProtectHome": "homes are read\\-only",
    "PrivateDevices": "no devices but /dev/null and the like",
    "RestrictNamespaces": "no containers and no flatpak: ask systemd\\-run",
    "SystemCallFilter": "no mount, no ptrace, no reboot",
    "TasksMax": "no more than the rest of it",
}


class Directive(NamedTuple):
    """One setting of a unit; ``reason`` is the comment right above it, empty where there is none."""

    section: str
    name: str
    value: str
    reason: str


def parse_unit(text: str) -> list[Directive]:
    """The settings of a unit file, in its order."""
    directives, section, comment = [], "", list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        if line.startswith("["):
            section = line.strip("[]")
        elif line:
            name, _, value = line.partition("=")
            directives.append(Directive(section, name, value, " ".join(comment)))
        comment = []
    return directives


def render() -> str:
    """The page."""
    parts = [
        f'.TH OOMREAPER.SERVICE 8 "2026\\-11\\-25" "oomreaper {__version__}" "oomreaper manual"',
        _section("NAME", "oomreaper.service \\- the watcher of oomreaper as a service of systemd"),
        _section("SYNOPSIS", ".B oomreaper.service"),
        _section("DESCRIPTION", _DESCRIPTION),
        _section("INSTALLATION", _INSTALL),
    ]
    directives = parse_unit(UNIT.read_text(encoding="utf-8"))
    rows = {f"{each.name}={each.value}": each.reason for each in directives}
    parts += [
        _section("SETTINGS", "Each setting of the unit, and why it is there.\n" + _table(rows)),
        _section("CAPABILITIES", "What the watcher keeps. It gives up all others after its start.\n" + _table(NEEDED)),
        _section("WHAT MUST NOT BE SET", "Settings that look like more safety and take the purpose away.\n"
                 + _table({f"{name}=": why for name, why in _NOT_SET.items()})),
        _section("HOOKS", "Hooks run in the same unit. What its sandbox costs them:\n"
                 + _table({f"{name}=": why for name, why in _FOR_HOOKS.items()})),
        _section("FILES", _table({
            "/etc/oomreaper.toml": "settings, see oomreaper.toml(5); without it the defaults hold",
            "/run/oomreaper/events.sock": "the event socket, where the settings ask for one",
        })),
        _section("SEE ALSO", ".BR oomreaper (1),\n.BR oomreaper.toml (5),\n.BR systemd.exec (5)"),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _section(title: str, body: str) -> str:
    return f'.SH "{title}"\n{body}'


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f".TP\n.B {_escape(key)}\n{_sentence(text)}" for key, text in rows.items())


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:] if text[:1].islower() and not text.startswith("systemd") else text
    return _escape(text if text.endswith(".") else text + ".")


def _escape(text: str) -> str:
    """Hyphens that are to be copied, and lines that begin like a request."""
    escaped = text.replace("\\-", "-").replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in ("'", ".", "/") else escaped


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
