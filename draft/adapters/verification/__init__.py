"""Where an adapter file loads, how strong it is there, and whether it is intact."""
