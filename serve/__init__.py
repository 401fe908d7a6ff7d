"""Finds or brings a ``tritonserver``, starts it on a model repository, waits until it is ready, and stops it."""
