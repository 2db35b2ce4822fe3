"""Which colour and which shape does each kind of mark have? The one place for both.

Every colour keeps a contrast of at least 3 to 1 with white and with the dark page, so that one palette serves both.
Shape always says the same as colour: nobody has to tell red from green.
"""

from __future__ import annotations

BLUE = "#3d7fc4"
RED = "#d8433b"
GREEN = "#16946a"
ORANGE = "#c97a10"
PURPLE = "#a061c4"
GREY = "#7d8590"

# One colour a trial where lines are told apart, the best trial first.
TRIAL_COLOURS = (BLUE, ORANGE, PURPLE, GREEN, "#b8558f", "#2f96a3", "#8c7a2e", RED)

# Symbol paths live in the square [-1, 1] x [-1, 1], y downwards, and are filled.
STAR = "M0,-1L.294,-.405L.951,-.309L.476,.155L.588,.809L0,.5L-.588,.809L-.476,.155L-.951,-.309L-.294,-.405Z"
CROSS = "M-.95,-.62L-.62,-.95L0,-.33L.62,-.95L.95,-.62L.33,0L.95,.62L.62,.95L0,.33L-.62,.95L-.95,.62L-.33,0Z"
BAR = "M-1,-.1L1,-.1L1,.1L-1,.1Z"

BEST, FEASIBLE, OFF_SCALE = "best 3", "feasible", "beyond the axis"
INFEASIBLE, PRUNED, FAILED = "infeasible", "pruned", "failed"

# The marks of trials, in the order of the legend: colour, shape, area in square pixels.
MARKS: dict[str, tuple[str, str, int]] = {
    BEST: (GREEN, STAR, 190),
    FEASIBLE: (BLUE, "circle", 42),
    OFF_SCALE: (BLUE, "triangle-up", 60),
    INFEASIBLE: (RED, CROSS, 64),
    PRUNED: (GREY, "diamond", 52),
    FAILED: (GREY, "square", 40),
}


def translucent(colour: str, opacity: float) -> str:
    """Return a colour of six hexadecimal digits as one that lets the background through.

    Parameters
    ----------
    colour
        For instance ``"#3d7fc4"``.
    opacity
        In [0, 1]; 1 hides the background.
    """
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
