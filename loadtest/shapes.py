"""How a load changes over time: as shares of its peak, for users (Locust) as for arrivals a second (open loop)."""

from __future__ import annotations

SHAPES = ("steady", "ramp", "step", "spike", "soak")
RAMP_STEPS, STEPS, SPIKE_BASE = 20, 5, 0.2


def stages(shape: str, peak: float, seconds: float) -> list[tuple[float, float]]:
    """The load and how long it lasts, one stage after the other.

    - ``steady``: the peak, all the time.
    - ``ramp``: from little to the peak, in ``RAMP_STEPS`` small steps.
    - ``step``: in ``STEPS`` stairs, each long enough to settle.
    - ``spike``: a fifth of the peak, suddenly the peak for a fifth of the time, then a fifth again.
    - ``soak``: up within a twentieth of the time, the peak, and down again: for hours.

    :raises ValueError: for a shape that is none of ``SHAPES``.
    """
    if shape == "steady":
        return [(peak, seconds)]
    if shape == "ramp":
        return [(peak * i / RAMP_STEPS, seconds / RAMP_STEPS) for i in range(1, RAMP_STEPS + 1)]
    if shape == "step":
        return [(peak * i / STEPS, seconds / STEPS) for i in range(1, STEPS + 1)]
    if shape == "spike":
        return [(SPIKE_BASE * peak, 0.4 * seconds), (peak, 0.2 * seconds), (SPIKE_BASE * peak, 0.4 * seconds)]
    if shape == "soak":
        up = [(peak * i / 5, 0.01 * seconds) for i in range(1, 5)]
        return [*up, (peak, 0.92 * seconds), *reversed(up)]
    raise ValueError(f"the shape is {shape!r}, must be one of {', '.join(SHAPES)}")


def at(plan: list[tuple[float, float]], now_s: float) -> float | None:
    """The load at a moment; ``None`` when the plan is over."""
    for load, seconds in plan:
        if now_s < seconds:
            return load
        now_s -= seconds
    return None
