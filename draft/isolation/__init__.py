"""Rewards in an environment and a process of their own, with their gradients. Only what loads one imports torch."""
