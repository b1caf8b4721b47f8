"""Whole models on disk, folders and single files: adapters merged into them, and extracted from two of them."""
