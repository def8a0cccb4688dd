"""The model's face to user space: what our ``linux`` room, unmodified, finds in place of ``os`` and the kernel."""
