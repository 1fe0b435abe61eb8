"""Pictures of a step: clean views, attacked views and the change between them, budgets, rewards and their spread."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from astra_gym.envs.actions import UNIT, ActionSets
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import StepRecord
from astra_gym.envs.rendering.drawing import BLUE, INK, ORANGE, curve, font, label, tiles_of

MODES = ["rgb_array"]
FPS = 4
"""Frames a second of a video: a step of the environment is worth looking at."""
CURVE = 100
"""The rewards of so many steps are drawn."""
BINS = 20
PARTS = (("epsilon", "radius, 1/255"), ("steps", "steps"), ("step_size", "step size, 1/255"))


class FrameSize(NamedTuple):
    """Pixels of a view's edge, of the panel's width, and of the letters."""

    tile: int
    panel: int
    letters: int


LARGE = FrameSize(tile=96, panel=190, letters=12)
SMALL = FrameSize(tile=72, panel=140, letters=10)
GAP = 6


def check_render_mode(mode: str | None) -> str | None:
    """Return the render mode; raise a ValueError if there is no such mode."""
    if mode is not None and mode not in MODES:
        raise ValueError(f"render_mode is {mode!r}: expected 'rgb_array' or None")
    return mode


class StepRenderer:
    """Draws the last step of a world, or before the first one its coming views. It only reads what the step has left:
    no random stream moves, and the network computes nothing.

    Args:
        engine: the world.
        sets: what actions choose among, for the axes.
        mode: the render mode; without one nothing is kept or drawn.

    Raises:
        ValueError: if there is no such mode.
    """

    def __init__(self, engine: AttackEngine, sets: ActionSets, mode: str | None) -> None:
        self.engine, self.sets, self.mode = engine, sets, check_render_mode(mode)
        self.begin()

    def begin(self) -> None:
        """Forget the steps so far."""
        self.record: StepRecord | None = None
        self.run, self.done = 0, 0.0
        self.curve: deque[float] = deque(maxlen=CURVE)

    def keep(self, run: int) -> None:
        """Keep the world's last step, which the picture shows until the next one; `run` is the number of its run."""
        record = self.engine.last
        if self.mode is None or record is None:
            return
        if run != self.run:
            self.begin()
        self.record, self.run, self.done = record, run, self.engine.progress
        self.curve.append(float(record.reward.mean()))

    def frames(self, size: FrameSize, groups: Sequence[range] | None = None) -> list[np.ndarray] | None:
        """Draw a frame (h, w, 3) uint8 for each group of views; None, with a warning, without a render mode.

        Args:
            size: the sizes of a frame's parts.
            groups: rows of the views that a frame shows; None: a frame for each view.
        """
        if self.mode is None:
            gym.logger.warn(
                "render() draws nothing without a render mode: make the environment with render_mode='rgb_array'"
            )
            return None
        record = self.record
        clean = self.engine.views if record is None else record.views
        attacked = clean if record is None or record.adversarial is None else record.adversarial
        groups = (
            [range(row, row + 1) for row in range(len(clean))]
            if groups is None
            else [rows[: len(clean)] for rows in groups]
        )
        reach = self.sets.epsilons[-1]
        change = ((attacked - clean) / (2 * reach) + 0.5).clamp(0, 1)
        tiles = [tiles_of(views, size.tile) for views in (clean, attacked, change)]
        height = 3 * (size.tile + GAP) + 4 * (size.letters + 3) + GAP
        panel = self._panel(size, height)
        return [self._frame(tiles, panel, size, height, rows) for rows in groups]

    def _frame(
        self, tiles: list[list[Image.Image]], panel: Image.Image, size: FrameSize, height: int, rows: Sequence[int]
    ) -> np.ndarray:
        width = len(rows) * (size.tile + GAP) + GAP + size.panel
        # a video's encoder wants even numbers
        picture = Image.new("RGB", (width + width % 2, height + height % 2), "white")
        draw = ImageDraw.Draw(picture)
        for column, row in enumerate(rows):
            left = GAP + column * (size.tile + GAP)
            for line, views in enumerate(tiles):
                picture.paste(views[row], (left, GAP + line * (size.tile + GAP)))
            for line, text in enumerate(self._captions(row)):
                place = (left, GAP + 3 * (size.tile + GAP) + line * (size.letters + 3))
                draw.text(place, text, INK, font(size.letters))
        labels = ("clean", "attacked", f"change, +-{self.sets.epsilons[-1] * UNIT:.3g}/255")
        for line, text in enumerate(labels):
            label(draw, (GAP, GAP + line * (size.tile + GAP)), text, size.letters - 2)
        picture.paste(panel, (width - size.panel, 0))
        if len(rows) == 1:
            self._mark(draw, size, height, width - size.panel, rows[0])
        return np.asarray(picture)

    def _captions(self, row: int) -> list[str]:
        record = self.record
        if record is None:
            return ["not attacked yet"]
        reward = f"reward {float(record.reward[row]):.3f}"
        if record.budget is None or not int(record.budget.steps[row]):
            return ["no attack", reward]
        radius, size = (float(values[row]) * UNIT for values in (record.budget.epsilon, record.budget.step_size))
        return [f"radius {radius:.3g}/255", f"{int(record.budget.steps[row])} x {size:.3g}/255", reward]

    def _panel(self, size: FrameSize, height: int) -> Image.Image:
        panel = Image.new("RGB", (size.panel, height), "white")
        draw = ImageDraw.Draw(panel)
        record, line = self.record, size.letters + 3
        step = 0 if record is None else record.step
        mean = "" if record is None else f"mean reward {self.curve[-1]:.3f}"
        texts = (f"run {self.run}, update {step}, {self.done:.0%} done", mean)
        for row, text in enumerate(texts):
            draw.text((GAP, GAP + row * line), text, INK, font(size.letters))
        curve(draw, (GAP, GAP + 2 * line, size.panel - GAP, self._first(size, height) - line), self.curve, CURVE)
        for part, (name, title) in enumerate(PARTS):
            left, top, right, bottom = self._axes(size, height, part)
            draw.text((left, top - line), title, INK, font(size.letters - 1))
            counts = self._counts(name)
            wide = (right - left) / len(counts)
            for place, count in enumerate(counts):
                if count:
                    high = bottom - (bottom - top) * count / max(counts)
                    draw.rectangle((left + place * wide, high, left + (place + 1) * wide - 1, bottom), BLUE)
            draw.line((left, bottom, right, bottom), INK)
            ends = ("0", f"{self._most(name):g}")
            draw.text((left, bottom + 1), ends[0], INK, font(size.letters - 1))
            draw.text((right, bottom + 1), ends[1], INK, font(size.letters - 1), anchor="ra")
        return panel

    def _first(self, size: FrameSize, height: int) -> int:
        """Top of the first histogram."""
        return height // 3 + size.letters

    def _axes(self, size: FrameSize, height: int, part: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a histogram in the panel."""
        first, line = self._first(size, height), size.letters + 3
        each = (height - first - GAP) / len(PARTS)
        top = first + part * each
        return GAP, top, size.panel - GAP, top + each - 2 * line - 2

    def _most(self, name: str) -> float:
        """The largest value of the set, in 1/255 or steps."""
        return max(self.sets.by_name[name]) * (1 if name == "steps" else UNIT)

    def _places(self, name: str) -> np.ndarray:
        """The bin of each view's value."""
        budget = None if self.record is None else self.record.budget
        values = np.zeros(0) if budget is None else getattr(budget, name).numpy() * (1 if name == "steps" else UNIT)
        return np.floor((values + 1e-3) / self._width(name)).astype(int).clip(0, self._bins(name) - 1)

    def _width(self, name: str) -> int:
        return math.ceil((self._most(name) + 1) / BINS)

    def _bins(self, name: str) -> int:
        return math.ceil((math.floor(self._most(name) + 1e-3) + 1) / self._width(name))

    def _counts(self, name: str) -> list[int]:
        return np.bincount(self._places(name), minlength=self._bins(name)).tolist()

    def _mark(self, draw: ImageDraw.ImageDraw, size: FrameSize, height: int, offset: int, row: int) -> None:
        """Mark the bins of one view's budget."""
        for part, (name, _) in enumerate(PARTS):
            places = self._places(name)
            if len(places):
                left, _, right, bottom = self._axes(size, height, part)
                wide = (right - left) / self._bins(name)
                start = offset + left + places[row] * wide
                draw.rectangle((start, bottom + 1, start + wide - 1, bottom + 3), ORANGE)
