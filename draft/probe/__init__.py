"""Gradient health: what the steps of a chain add to its gradient, before training through them."""
