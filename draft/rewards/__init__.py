"""The door: what a reward is, and who offers one. Nothing in here imports torch."""
