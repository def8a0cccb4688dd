"""The user's settings: read from TOML, checked, compiled into a plan; and the peers' settings turned into ours."""
