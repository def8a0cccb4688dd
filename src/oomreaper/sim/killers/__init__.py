"""The kernel's own killers, of three ages: ``oom_killer`` (before 2016), ``founding`` (the commit) and ``later``.

``registry`` names them. Each is a ``killer.Killer`` made of small methods, so that a mutant changes one step of it by
overriding one.
"""
