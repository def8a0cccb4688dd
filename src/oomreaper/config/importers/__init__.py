"""The peers' settings read and turned into ours, each setting that cannot be carried over named with its reason."""
