#!/bin/sh
# Make .venv ready. `bootstrap.sh run`: enough for the demonstration, with nothing but python3 (no pip, no network).
# `bootstrap.sh dev`: that and everything that tests, lint, bench and docs need.
# Debian's packages that are missing are installed where we may (root and apt-get); elsewhere it says what to do.
set -eu

what=$1
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
python=${PYTHON:-python3}

say() { printf 'bootstrap: %s\n' "$*" >&2; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

install_packages() {
    say "installing: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "$@" >&2
}

command -v "$python" >/dev/null 2>&1 || { say "no $python here; install Python 3.11 or later"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$("$python" --version) is too old: Python 3.11 or later is needed (or: make PYTHON=python3.12 ...)"
    exit 1
}

if [ ! -x "$venv/bin/python" ]; then
    say "making $venv"
    # Without pip this needs nothing that Debian splits off into python3-venv.
    "$python" -m venv --without-pip "$venv"
fi

if [ "$what" = run ]; then
    # To point at the source is to install it: the one dependency checks settings files, and a demonstration reads none.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    [ -e "$venv/bin/oomreaper" ] || printf '%s\n' "$root/src" >"$site/oomreaper-source.pth"
    exit 0
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$venv/bin/python" -m ensurepip --upgrade >/dev/null 2>&1; then
        can_install || { say "ensurepip is missing; install it (Debian: apt-get install python3-venv)"; exit 1; }
        install_packages python3-venv
        "$venv/bin/python" -m ensurepip --upgrade >/dev/null
    fi
fi
say "installing the tools that the tests need"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root" --group "$root/pyproject.toml:dev"

# What the real-kernel tests use: a C compiler, mkfs.ext4 and losetup, unshare and setpriv, ps-free tools only.
missing=
for pair in cc:gcc mkfs.ext4:e2fsprogs losetup:mount unshare:util-linux setpriv:util-linux; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
if command -v cc >/dev/null 2>&1 && ! printf '#include <stdio.h>\n#include <linux/fuse.h>\nint main(void){return 0;}\n' | cc -x c -fsyntax-only - 2>/dev/null; then
    missing="$missing libc6-dev linux-libc-dev"
fi
[ -z "$missing" ] || case " $missing " in *" gcc "*) missing="$missing libc6-dev" ;; esac
if [ -n "$missing" ]; then
    if can_install; then
        # shellcheck disable=SC2086 # a list of package names
        install_packages $missing
    else
        say "not here, so some tests will be skipped and say so:$missing"
    fi
fi
