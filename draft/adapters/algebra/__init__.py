"""Algebra of low-rank updates: merge, truncate, compare. Tensors in, tensors out; no files."""
