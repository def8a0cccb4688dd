"""The way into an import: whose settings, and who reads them. Only the reader that is asked for is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.config.values import guess_word, show_text
from oomreaper.errors import ConfigError, Fault

if TYPE_CHECKING:
    from oomreaper.config.importers.report import Imported

PEERS = ("earlyoom", "nohang", "systemd-oomd")


def import_settings(peer: str, path: str | None) -> Imported:
    """Read a peer's settings, from where they usually are when ``path`` is None.

    Raises:
        ConfigError: There is no such peer, or its settings cannot be read.
    """
    if peer == "earlyoom":
        from oomreaper.config.importers.earlyoom import import_earlyoom

        return import_earlyoom(path)
    if peer == "nohang":
        from oomreaper.config.importers.nohang import import_nohang

        return import_nohang(path)
    if peer == "systemd-oomd":
        from oomreaper.config.importers.systemd_oomd import import_systemd_oomd

        return import_systemd_oomd(path)
    found = f'found "{show_text(peer)}"'
    raise ConfigError((Fault("import", "", None, found, f"known are {', '.join(PEERS)}", guess_word(peer, PEERS)),))
