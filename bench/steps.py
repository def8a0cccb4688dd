"""Does what ``oomreaper reap PID`` does, step by step, and prints how long each step took: ``steps STARTED_NS PID``.

The first step is the interpreter's own start, so whoever runs this says when it was started (CLOCK_MONOTONIC in ns).
"""

from __future__ import annotations

import time

_MARKS = [("interpreter and site are up", time.monotonic_ns())]


def _mark(what: str, at_ns: int | None = None) -> None:
    _MARKS.append((what, time.monotonic_ns() if at_ns is None else at_ns))


def main() -> None:
    """Take the steps."""
    from oomreaper.faces import cli

    _mark("import of the command (faces.cli)")
    import sys

    parser = cli.build_parser()
    _mark("the parser is built")
    pid = int(parser.parse_args(["reap", sys.argv[2]]).targets[0].pid)
    _mark("arguments are read; import of the errand (watch.errand)")
    from bench.stand_in import StandIn
    from oomreaper.watch.errand import make_settings

    _mark("(import of the bench's own driver)")
    stand_in = StandIn(make_settings(timeout_seconds=30.0, coredump="abort"))
    ready = stand_in.start()
    _mark("a worker and a spare are forked", ready["forked_ns"])
    _mark("both are ready", ready["ready_ns"])
    stand_in.scout(pid)
    news = stand_in.turn()[0]
    while not news:
        news = stand_in.turn()[0]
    _mark("the victim has been looked at")
    stand_in.kill(pid)
    while not (news := stand_in.turn()[0]):
        pass
    _mark("the signal is sent", news[0]["strikes"][0]["signal_ns"])
    stand_in.end()

    import json

    earlier_ns = int(sys.argv[1])
    steps = []
    for what, at_ns in _MARKS:
        steps.append((what, (at_ns - earlier_ns) / 1e6))
        earlier_ns = at_ns
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
