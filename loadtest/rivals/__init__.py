"""Other servers on the same model, for the benchmark.

They run in virtual environments of their own (``python -m loadtest.rivals install``), never in the project's. The apps
here are what their documentation shows, with batching on; they import nothing of the project.
"""
