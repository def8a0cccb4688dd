"""Which Python another user may start: the tests' own often lies in a closed home."""

from __future__ import annotations

import functools
import shutil
import stat
import subprocess
import sys
from pathlib import Path

NOBODY = 65534


@functools.cache
def find_python_for_everybody() -> str | None:
    """An interpreter of 3.11 or later that any user may start; None when this machine has none."""
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if candidate is None:
            continue
        resolved = Path(candidate).resolve()
        if not all(path.stat().st_mode & stat.S_IXOTH for path in (resolved, *resolved.parents)):
            continue
        script = "import sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([candidate, "-I", "-S", "-c", script], check=False).returncode == 0:
            return candidate
    return None
