"""The loops: what waits, and drives the pure rooms with what the kernel tells."""
