"""The heart: how one victim is killed and its memory got back, and how many are served without ever waiting.

Read in this order:

* ``lifecycle``: the states of one victim, as a table. Everything else moves a victim through it.
* ``handoff``: the slot through which a victim is handed to a worker, as in the founding commit.
* ``jobs``: what a worker can be asked, and what it answers.
* ``verify``: what an answer and the memory mean together. The kernel's return code is never believed alone.
* ``crew``: deadlines, retries, lost workers; it drives the four above and never waits itself.
* ``worker``: the one part that touches the kernel: the process that signals and reaps.

All but ``worker`` is pure: no clock, no descriptor, no system call. Time and answers come in, jobs go out, so
that the daemon, the command, the tests and the simulator drive the very same objects.
"""
