"""The loops: ``errand`` drives the reaper once, for ``oomreaper reap``; the rest of this room is the watcher, a daemon.

In reading order:

=============  ==================================================================================================
``start``      the process: put together, warmed up, made resident, left to the loop
``loop``       its one wait: an epoll on everything that can happen
``mind``       when a victim is due, who it is, how it is taken: pure, a room of its own
``actors``     who acts on a decision: ``Enforcer``, or ``Pretender`` for a dry run
``sources``    the kernel's numbers and hints, for the machine and for groups; ``machine`` brings them together
``voice``      what is told: ``records`` to the event socket (``outlet``), lines to the ``log``
``plan``       the settings as they come from the command; ``reload`` fetches new ones
``companions`` the clerk, which runs the hooks, kept alive; ``client`` asks a watcher that runs
``rehearsal``  every worker kills for real before it has to
=============  ==================================================================================================
"""
