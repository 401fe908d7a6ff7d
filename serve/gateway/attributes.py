"""Perspective's attributes, and the label of our models that each one is answered with."""

from __future__ import annotations

from collections.abc import Collection

from serve.gateway import errors

PRODUCTION = {
    "TOXICITY": "toxic",
    "SEVERE_TOXICITY": "severe_toxic",
    "IDENTITY_ATTACK": "identity_hate",
    "INSULT": "insult",
    "PROFANITY": "obscene",
    "THREAT": "threat",
}
LABELS: dict[str, str] = {
    **PRODUCTION,
    **{f"{name}_EXPERIMENTAL": label for name, label in PRODUCTION.items()},
    "OBSCENE": "obscene",
}
"""Attribute to label. Perspective has more attributes (FLIRTATION, SPAM, ...); our models have no label for them."""


def label_of(attribute: str, labels: Collection[str]) -> str | None:
    """The label that answers for an attribute, ``None`` where a model with these labels has none."""
    label = LABELS.get(attribute)
    return label if label in labels else None


def unknown(attribute: str) -> errors.ApiError:
    return errors.invalid(f"Unknown requested attribute: {attribute[:200]}")
