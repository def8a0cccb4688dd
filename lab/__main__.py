"""``python -m lab``: whole machines that run out of memory. Progress goes to stderr, what was asked for to stdout.

Exit status: 0 all that was asked for was done, and nothing broke its scenario; 1 something did, or could not be run;
2 usage; 3 the lab cannot work here: the message says what it lacks. 130 and 143: interrupted, and every guest ended.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from lab.cache import Cache
from lab.images.build import IMAGES, obtain_image
from lab.kernels import SUITES
from lab.machine import Machines
from lab.packages import Archive, LabError, install_on_host, say
from lab.seam import GuestLostError, MachineSpec
from oomreaper.errors import OomreaperError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OK, _NOT_ALL, _USAGE, _NOT_HERE, _INTERRUPTED, _TERMINATED = 0, 1, 2, 3, 130, 143
_KERNELS = tuple(SUITES)
_MIB = 1 << 20


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came: everything on the way is ended as for Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="python -m lab", description="Whole machines that really run out of memory.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="get kernels and build images, and say how much disk all of it takes")
    build.add_argument("--image", action="append", choices=IMAGES, help="this one only (may be given more than once)")
    build.add_argument("--kernel", action="append", choices=_KERNELS, help="for this kernel only")
    build.set_defaults(do=_build)

    smoke = commands.add_parser("smoke", help="one kernel, the small image, the key scenarios, ours only")
    smoke.set_defaults(do=_smoke)

    run = commands.add_parser("run", help="the grid, or a part of it; goes on where it was interrupted")
    run.add_argument("--image", choices=("small", "full"), default="full", help="small: the kernel and ours alone")
    run.add_argument("--scenario", action="append", help="this one only (may be given more than once)")
    run.add_argument("--contestant", action="append", help="this one only: earlyoom, or earlyoom/tuned")
    run.add_argument("--kernel", action="append", choices=_KERNELS, help="on this kernel only")
    run.add_argument("--repeats", type=int, default=3, metavar="N", help="how often each (default: 3)")
    run.set_defaults(do=_run)

    suite = commands.add_parser("suite", help="the tests of the reap victims, in a guest of each kernel")
    suite.add_argument("--kernel", action="append", choices=_KERNELS, help="on this kernel only")
    suite.add_argument("tests", nargs="*", help="these tests only, as pytest names them")
    suite.set_defaults(do=_suite)

    time_it = commands.add_parser("time", help="how long a guest takes to boot, and to start from what was saved")
    time_it.add_argument("--image", choices=IMAGES, default="small")
    time_it.add_argument("--kernel", choices=_KERNELS, default="newest")
    time_it.add_argument("--memory", type=int, default=512, metavar="MIB")
    time_it.set_defaults(do=_time)

    report = commands.add_parser("report", help="write docs/lab.md and the HTML page from the raw records")
    report.set_defaults(do=_report)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked; the exit status."""
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _raise_terminated)
    do: Callable[[argparse.Namespace], int] = arguments.do
    try:
        return do(arguments)
    except _TerminatedError:
        return _TERMINATED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except LabError as error:
        say(str(error))
        return _NOT_HERE
    except GuestLostError as error:
        say(f"the guest was lost: {error}")
        return _NOT_ALL
    except OomreaperError as error:
        say(str(error))
        return _USAGE


def _raise_terminated(_number: int, _frame: object) -> NoReturn:
    raise _TerminatedError


def _build(arguments: argparse.Namespace) -> int:
    cache = Cache()
    archive = Archive(cache)
    install_on_host()
    for image in arguments.image or IMAGES:
        for kernel in arguments.kernel or _KERNELS:
            built = obtain_image(image, kernel, cache, archive)
            print(f"{image} with {kernel}: {built.kernel.release} ({built.kernel.version})")
    _print_disk(cache)
    return _OK


def _smoke(_arguments: argparse.Namespace) -> int:
    from lab.runner import smoke  # the grid's own rooms, which building needs not

    started_s = time.monotonic()
    status = smoke(make_machines(), say=say)
    say(f"smoke took {time.monotonic() - started_s:.0f} s")
    return status


def _run(arguments: argparse.Namespace) -> int:
    from lab.runner import run_grid

    return run_grid(
        make_machines(),
        image=arguments.image,
        scenarios=arguments.scenario,
        contestants=arguments.contestant,
        kernels=arguments.kernel,
        repeats=arguments.repeats,
        say=say,
    )


def _suite(arguments: argparse.Namespace) -> int:
    from lab.suite import TESTS, run_suite

    machines, is_good = make_machines(), True
    for kernel in arguments.kernel or _KERNELS:
        say(f"the suite of the reap victims on {kernel}")
        result = run_suite(machines, kernel, arguments.tests or TESTS)
        print(
            f"{kernel} ({result.release}): {result.passed} passed, {result.failed} failed, {result.skipped} skipped "
            f"in {result.duration_s:.0f} s{'' if result.is_complete else '; cut off'}"
        )
        for line in (*result.failures, *result.skips):
            print(f"  {line}")
        is_good = is_good and result.is_good
    return _OK if is_good else _NOT_ALL


def _time(arguments: argparse.Namespace) -> int:
    machines = make_machines()
    spec = MachineSpec(arguments.image, arguments.kernel, arguments.memory, 2, 0, 0)
    with machines.open(spec) as machine:
        print(f"booted and set up in {machine.facts['boot_s']} s: {machine.facts['kernel']}")
    for _ in range(3):
        started_s = time.monotonic()
        with machines.open(spec) as machine:
            machine.ask("ping")
            print(f"started from what was saved, first answer after {time.monotonic() - started_s:.2f} s")
    return _OK


def _report(_arguments: argparse.Namespace) -> int:
    from lab.report import main as report

    return report([])


def make_machines() -> Machines:
    """Who makes this host's guests, with the cache where it lies by default."""
    cache = Cache()
    return Machines(cache, Archive(cache))


def _print_disk(cache: Cache) -> None:
    kept = cache.list_kept()
    for kind in sorted({each.kind for each in kept}):
        taken = sum(each.disk_bytes for each in kept if each.kind == kind)
        print(f"{taken // _MIB:6} MiB  {kind}")
    print(f"{sum(each.disk_bytes for each in kept) // _MIB:6} MiB  in {cache.root}; it may be removed at any time")


if __name__ == "__main__":
    sys.exit(main())
