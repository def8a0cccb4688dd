"""``oomreaper demo``: a process that cannot die, killed in vain, then reaped, before your eyes.

``show`` is the door. ``acts`` makes each situation with the processes of ``victims``, which run the parts written
in ``roles``; ``tellers`` says what happens, on a screen (with a ``timeline``) or as JSON lines. ``bounds`` keeps
the victim small.
"""
