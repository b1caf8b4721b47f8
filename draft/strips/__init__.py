"""Strips: what an adapter does over its scale, the same noise in every column; two of them over both scales."""
