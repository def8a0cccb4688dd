"""The one part of the reaper that touches the kernel: the worker process, and the pool that keeps such processes.

``child`` is what runs in a worker; ``pool`` is the other end: it forks workers, gives them jobs and ends them.
"""
