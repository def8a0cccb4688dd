"""The heart: how one victim is killed and its memory got back, and how many are served without ever waiting.

Read in this order:

* ``lifecycle``: the states of one victim, as a table. Everything else moves a victim through it.
* ``handoff``: the slot through which a victim is handed to a worker, as in the founding commit.
* ``jobs``: what a worker can be asked, and what it answers.
* ``verify``: what an answer and the memory mean together. The kernel's return code is never believed alone.
* ``roster``: which worker is idle, who does what and until when, who was lost and must be replaced.
* ``case``: one victim's file: what is known of it, what was tried, what is due.
* ``crew``: attempts, deadlines, ends; it drives all of the above and never waits itself.
* ``worker``: the one part that touches the kernel: the process that signals and reaps.

``wire`` writes jobs and answers on a socket. All but ``worker`` is pure: no clock, no descriptor, no system call.
Time and answers come in, jobs go out, so that the daemon, the command, the tests and the simulator drive the
very same objects.
"""
