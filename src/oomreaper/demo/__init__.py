"""``oomreaper demo``: a shortage, and processes that cannot die; who gets the memory back, before your eyes.

``show`` is the door. The main act is ``shortage``: the real watcher in a control ``group`` of the demo's own. ``acts``
makes the situations of one victim, killed in vain and then reaped. Both work with the processes of ``victims``, which
run the parts written in ``roles``; ``tellers`` says what happens, on a screen (with a ``timeline``) or as JSON lines.
``bounds`` keeps the victims small.
"""
