"""Drift: are comments and scores still what they were when the model was measured?

::

    labelled comments ─ reference.py ─▶ reference.json, which goes with the model

    metrics of Triton or the gateway, or a Prometheus ─ live.py ─┐
    scored comments, decision records ──────────────── texts.py ─┼─ measure.py ─▶ report: JSON, metrics, exit code
    the same curated comments, scored again ───────── curated.py ─┘

Shares of scores and lengths are compared by the population stability index (PSI), rates by their ratio. A difference
counts where it is large, and larger than chance gives with so few comments.
"""
