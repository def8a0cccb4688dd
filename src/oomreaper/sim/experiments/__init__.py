"""What is done with the modelled machine: single trials, sweeps over seeds, the table of lock-ups, shrunk failures.

``trial`` runs one scenario with one killer and ``verdict`` says how it ended; ``contenders`` names the killers;
``sweeping`` does it for many seeds on all cores and loses nothing; ``lockup`` is the founding commit's claim as an
experiment; ``checking`` looks for broken invariants in our own code, and ``shrinking`` makes what it finds small;
``intervals``, ``drawing``, ``recording`` and ``traces`` are for who reads it.
"""
