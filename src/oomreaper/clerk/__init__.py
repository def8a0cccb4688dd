"""The clerk: does what the watcher must not. It reads the events and runs the hooks, in a process of its own."""
