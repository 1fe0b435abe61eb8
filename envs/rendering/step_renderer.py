"""Pictures of a step: clean views, attacked views and the change between them, budgets, rewards and their spread."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from astra_gym.envs.api.action_sets import UNIT, ActionSets
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import StepRecord
from astra_gym.envs.rendering.drawing import (
    BLUE,
    GAP,
    INK,
    AttackedTiles,
    Box,
    FrameSize,
    bars,
    canvas,
    check_render_mode,
    curves,
    ends,
    font,
    frame_of,
    mark,
    warn_without_mode,
    write,
)

CURVE = 100
"""The rewards of so many steps are drawn."""
BINS = 20
PARTS = (("epsilon", "radius, 1/255"), ("steps", "steps"), ("step_size", "step size, 1/255"))


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
            warn_without_mode()
            return None
        record = self.record
        clean = self.engine.views if record is None else record.views
        attacked = clean if record is None or record.adversarial is None else record.adversarial
        groups = [range(row, row + 1) for row in range(len(clean))] if groups is None else groups
        tiles = AttackedTiles(clean, attacked, self.sets.epsilons[-1], size)
        panel = self._panel(size)
        return [self._frame(tiles, panel, size, rows[: len(clean)]) for rows in groups]

    def _frame(self, tiles: AttackedTiles, panel: Image.Image, size: FrameSize, rows: Sequence[int]) -> np.ndarray:
        if len(rows) == 1:
            panel = panel.copy()
            self._mark(ImageDraw.Draw(panel), size, rows[0])
        return frame_of(tiles.frame({row: self._captions(row) for row in rows}, panel))

    def _captions(self, row: int) -> list[str]:
        record = self.record
        if record is None:
            return ["not attacked yet"]
        reward = f"reward {float(record.reward[row]):.3f}"
        if record.budget is None or not int(record.budget.steps[row]):
            return ["no attack", reward]
        radius, size = (float(values[row]) * UNIT for values in (record.budget.epsilon, record.budget.step_size))
        return [f"radius {radius:.3g}/255", f"{int(record.budget.steps[row])} x {size:.3g}/255", reward]

    def _panel(self, size: FrameSize) -> Image.Image:
        panel = canvas(size.panel, size.height(3, 4))
        draw = ImageDraw.Draw(panel)
        record, line = self.record, size.line
        step = 0 if record is None else record.step
        mean = "" if record is None else f"mean reward {self.curve[-1]:.3f}"
        write(draw, (GAP, GAP), (f"run {self.run}, update {step}, {self.done:.0%} done", mean), size.letters)
        box: Box = (GAP, GAP + 2 * line, size.panel - GAP, self._first(size) - line)
        curves(draw, box, {BLUE: self.curve}, max(10, len(self.curve)))
        for part, (name, title) in enumerate(PARTS):
            box = self._axes(size, part)
            draw.text((box[0], box[1] - line), title, INK, font(size.letters - 1))
            counts = np.bincount(self._places(name), minlength=self._bins(name)).tolist()
            bars(draw, box, counts, max(counts))
            ends(draw, box, "0", f"{self._most(name):g}", size.letters - 1)
        return panel

    def _first(self, size: FrameSize) -> int:
        """Top of the first histogram."""
        return size.height(3, 4) // 3 + size.letters

    def _axes(self, size: FrameSize, part: int) -> Box:
        """The box of a histogram in the panel."""
        first = self._first(size)
        each = (size.height(3, 4) - first - GAP) / len(PARTS)
        top = first + part * each
        return GAP, top, size.panel - GAP, top + each - 2 * size.line - 2

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

    def _mark(self, draw: ImageDraw.ImageDraw, size: FrameSize, row: int) -> None:
        """Mark the bins of one view's budget."""
        for part, (name, _) in enumerate(PARTS):
            if len(places := self._places(name)):
                mark(draw, self._axes(size, part), int(places[row]), self._bins(name))
