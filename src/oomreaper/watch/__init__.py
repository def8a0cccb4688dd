"""The loops: ``errand`` drives the reaper once, for ``oomreaper reap``; the rest of this room is the watcher, a daemon.

In reading order:

=============  ==================================================================================================
``start``      the process: put together, warmed up, made resident, left to the loop
``loop``       its one wait: an epoll on everything that can happen
``watcher``    *when*: looks at each scope in time, goes up the ladder of its rules, has victims taken
``candidates`` *who*: census, ranking and looks at the leaders, kept ready before they are needed
``hunter``     *how*: one victim from the choice to memory that came back (``hunt``: its states, a table)
``scouts``     the looks ahead of need, each with its pidfd
``actors``     who acts on a decision: ``Enforcer``, or ``Pretender`` for a dry run
``team``       watcher and reaper as one thing to drive, for the loop, the tests and the simulator alike
``sources``    the kernel's numbers and hints, for the machine and for groups; ``machine`` brings them together
``voice``      what is told: ``records`` to the event socket (``outlet``), lines to the ``log``
``plan``       the settings as they come from the command; ``reload`` fetches new ones
``companions`` the clerk, which runs the hooks, kept alive; ``client`` asks a watcher that runs
``rehearsal``  every worker kills for real before it has to
=============  ==================================================================================================

``candidates``, ``hunt``, ``hunter``, ``scouts``, ``team`` and ``watcher`` know no kernel, clock or descriptor.
"""
