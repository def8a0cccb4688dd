"""Real processes that SIGKILL alone does not free; ``stage`` is the door."""
