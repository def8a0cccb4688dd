"""The values everyone speaks. Immutable, and this room imports nothing of the house."""
