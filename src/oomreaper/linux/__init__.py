"""The kernel's edge: the only room that knows ctypes, /proc and /sys."""
