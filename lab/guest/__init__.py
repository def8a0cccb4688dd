"""What runs inside of a guest. Its programs know the standard library only, and nothing of the host's side."""
