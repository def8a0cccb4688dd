"""What another user may start and read: the tests' own interpreter and checkout often lie in a closed home."""

from __future__ import annotations

import atexit
import functools
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import oomreaper

NOBODY = 65534
SOURCE = Path(oomreaper.__file__).resolve().parent.parent


@functools.cache
def find_python_for_everybody() -> str | None:
    """An interpreter of 3.11 or later that any user may start; None when this machine has none."""
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if candidate is None or not _is_open_to_all(Path(candidate).resolve()):
            continue
        resolved = str(Path(candidate).resolve())  # without a virtual environment: the package has no dependency
        script = "import sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([resolved, "-I", "-S", "-c", script], check=False).returncode == 0:
            return resolved
    return None


@functools.cache
def find_source_for_everybody() -> str:
    """The package's source where any user may read it: the checkout, or a copy that goes when this process ends."""
    if _is_open_to_all(SOURCE):
        return str(SOURCE)
    copy = Path(tempfile.mkdtemp(prefix="oomreaper-test-source-"))
    copy.chmod(0o755)
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(SOURCE / "oomreaper", copy / "oomreaper", ignore=shutil.ignore_patterns("__pycache__"))
    return str(copy)


def _is_open_to_all(path: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))
