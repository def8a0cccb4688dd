"""The bench: every figure of the Budgets table, measured on this machine, as ratios in one run where time is involved.

``python -m bench`` (``make bench``) writes ``bench/results/latest.json`` and, from that alone, ``docs/benchmarks.md``.

========  ==========================================================================================
figures/  one module for each figure: what is measured, between what, how often, against which bar
records   the values: measures, summaries, bars, verdicts; to JSON and back
page      JSON to Markdown
ours      the reaper's side: ``stand_in`` run as a process of its own, as the watcher will be
others    what it is compared with: SIGKILL alone, and ``strike.c``, the bare system calls
observer  who sees, from outside and the same way for both sides, when memory and process are gone
machine   what all this ran on
========  ==========================================================================================
"""
