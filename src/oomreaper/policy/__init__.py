"""Decisions about who may be a victim. Pure: facts in, decisions with their reasons out."""
