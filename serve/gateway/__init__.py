"""The HTTP gateway: Perspective API's endpoints, and a plain API, on a Tritox server.

::

    HTTP ─ gate (keys, limits, metrics) ─▶ perspective.py, plain.py ─▶ models.py ─▶ client ─ gRPC ─▶ Triton
                                               └─ suggested scores ─▶ feedback.py ─▶ SQLite or PostgreSQL

Texts pass through. The one place that keeps any is ``feedback.py``, for the comments that a caller suggests scores for.
"""
