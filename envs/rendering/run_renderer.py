"""A picture of a training in progress: its schedule, its budget, its score and losses, and some views."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageDraw

from astra_gym.envs.api.action_sets import UNIT
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rendering.drawing import (
    BLUE,
    GAP,
    INK,
    LARGE,
    LIGHT,
    ORANGE,
    AttackedTiles,
    Box,
    bars,
    canvas,
    curves,
    font,
    frame_of,
    write,
)

SHOWN = 4
"""So many views are in a frame."""
SIDE = 200
"""Width of one of the panel's two columns."""
LINES = 2
TITLES = {"epsilon": "radius, 1/255", "steps": "steps", "step_size": "step size, 1/255"}
FACTORS = {"lr": "learning rate", "strength": "augmentation strength"}


def draw_run(
    engine: AttackEngine, about: Sequence[str], history: Sequence[Mapping[str, float]], decisions: int, tops: Any
) -> np.ndarray:
    """Draw a training, (h, w, 3) uint8. Nothing but what it has left is read.

    Args:
        engine: the world of the training.
        about: two lines of text.
        history: what each decision chose (`epsilon`, `steps`, `step_size`, or the factors `lr` and `strength`) and what
            it led to: `SA`, `RA` in [0, 1], and the losses.
        decisions: number of decisions of the whole training.
        tops: by name the largest value of each choice that is drawn.
    """
    size, line = LARGE, LARGE.line
    panel = canvas(2 * SIDE + 2 * GAP, size.height(AttackedTiles.rows, LINES))
    draw, bottom = ImageDraw.Draw(panel), panel.height - GAP
    write(draw, (GAP, GAP), about, size.letters)
    top, right = GAP + 2 * line + 4, panel.width - GAP
    draw.rectangle((GAP, top, right, top + 6), None, LIGHT)
    draw.rectangle((GAP, top, GAP + (right - GAP) * engine.progress, top + 6), BLUE)
    top += 6 + GAP
    each = (bottom - top) / len(tops)
    for place, (name, most) in enumerate(tops.items()):
        box = (GAP, top + place * each + line, SIDE - GAP, top + (place + 1) * each - GAP)
        _choices(draw, box, name, [row[name] for row in history], decisions, most)
    middle = (top + bottom) / 2
    left = SIDE + GAP
    losses = [name for name in ("clean", "attacked", "loss") if history and name in history[0]]
    for title, names, box in (
        ("score", ("SA", "RA"), (left, top + line, right, middle - GAP)),
        ("loss", losses, (left, middle + line, right, bottom - GAP)),
    ):
        lines = dict(zip((BLUE, ORANGE), ([row[name] for row in history] for name in names), strict=False))
        curves(draw, box, lines, decisions, size.letters - 1)
        _legend(draw, (left, box[1] - line), title, names, lines)
    last = engine.last
    clean = (engine.views if last is None else last.views)[:SHOWN]
    attacked = clean if last is None or last.adversarial is None else last.adversarial[:SHOWN]
    tiles = AttackedTiles(clean, attacked, engine.settings.ranges.sets.epsilons[-1], size)
    return frame_of(tiles.frame({row: _caption(engine, row) for row in range(len(clean))}, panel))


def _choices(
    draw: ImageDraw.ImageDraw, box: Box, name: str, values: Sequence[float], decisions: int, most: float
) -> None:
    unit, sign = UNIT if name in ("epsilon", "step_size") else 1, "x" if name in FACTORS else ""
    last = f": {unit * values[-1]:.3g}{sign} of {unit * most:.3g}{sign}" if values else ""
    title = f"{(TITLES | FACTORS)[name]}{last}"
    draw.text((box[0], box[1] - LARGE.line), title, INK, font(LARGE.letters - 1))
    bars(draw, box, [*values, *[0.0] * (decisions - len(values))], most)


def _legend(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    title: str,
    names: Sequence[str],
    lines: Mapping[str, Sequence[float]],
) -> None:
    letters = font(LARGE.letters - 1)
    draw.text(place, title, INK, letters)
    x = place[0] + draw.textlength(title, letters)
    for name, (color, values) in zip(names, lines.items(), strict=True):
        text = f"  {name} {values[-1]:.3f}" if values else f"  {name}"
        draw.text((x, place[1]), text, color, letters)
        x += draw.textlength(text, letters)


def _caption(engine: AttackEngine, row: int) -> list[str]:
    last = engine.last
    if last is None:
        return ["not attacked yet"]
    if last.budget is None or not int(last.budget.steps[row]):
        return ["no attack"]
    return [f"moved by {float(last.strength[row]) * UNIT:.3g}/255"]
