"""Shared settings of the property tests."""

from hypothesis import settings

settings.register_profile("adapters", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("adapters")
