"""Pictures of an attack in progress: each view, where it stands, whether it has stopped, and its loss step by step."""

from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from astra_gym.envs.rendering.drawing import (
    BLUE,
    GAP,
    GRAY,
    INK,
    SMALL,
    AttackedTiles,
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
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack

LINES = 4
"""Lines of text under a view."""


class AttackRenderer:
    """Draws an attack after its last step. It only reads what the steps have left.

    Args:
        epsilon: radius of the views' balls.
        horizon: most steps of an attack.
        mode: the render mode; without one nothing is kept or drawn.

    Raises:
        ValueError: if there is no such mode.
    """

    def __init__(self, epsilon: float, horizon: int, mode: str | None) -> None:
        self.epsilon, self.horizon, self.mode = epsilon, horizon, check_render_mode(mode)
        self.losses: list[np.ndarray] = []
        self._start: list[np.ndarray] = []

    def begin(self, attack: StepwiseAttack) -> None:
        """Note the losses where an attack begins; the picture is of the attack before until the next `keep`."""
        if self.mode is not None:
            self._start = [attack.values.cpu().numpy()]

    def keep(self, attack: StepwiseAttack, clean: Tensor, about: str, rewards: np.ndarray | None = None) -> None:
        """Keep where an attack stands; the picture shows it until the next call.

        Args:
            attack: the attack.
            clean: (n,) loss of the clean views.
            about: what is said of the world, in few words.
            rewards: (n,) of the step; None if there was none yet.
        """
        if self.mode is None:
            return
        if self._start:
            self.losses, self._start = self._start, []
        if rewards is not None:
            self.losses.append(attack.values.cpu().numpy())
        self.images, self.moved, self.clean = attack.images, attack.moved.clone(), clean.cpu().numpy()
        self.steps, self.stopped = attack.steps.numpy().copy(), attack.stopped.numpy().copy()
        self.about, self.rewards = about, rewards

    def frames(self) -> Any:
        """Draw a frame (h, w, 3) uint8 for each view; None, with a warning, without a render mode.

        Raises:
            ResetNeeded: if nothing was kept.
        """
        if self.mode is None:
            warn_without_mode()
            return None
        if not self.losses:
            raise gym.error.ResetNeeded("call reset() before render()")
        tiles = AttackedTiles(self.images, self.moved, self.epsilon, SMALL)
        return tuple(
            frame_of(tiles.frame({row: self._captions(row)}, self._panel(row))) for row in range(len(self.images))
        )

    def _state(self, row: int) -> str:
        steps = int(self.steps[row])
        if self.stopped[row]:
            return f"stopped after {steps}"
        return f"ended after {steps}" if steps == self.horizon else f"moving, {steps} of {self.horizon}"

    def _captions(self, row: int) -> list[str]:
        loss = float(self.losses[-1][row])
        reward = "" if self.rewards is None else f"reward {self.rewards[row]:+.3f}"
        return [self._state(row), f"loss {loss:.3f}", f"gain {loss - self.clean[row]:+.3f}", reward]

    def _panel(self, row: int) -> Image.Image:
        size, line, right = SMALL, SMALL.line, SMALL.panel - GAP
        height = size.height(AttackedTiles.rows, LINES)
        panel = canvas(size.panel, height)
        draw = ImageDraw.Draw(panel)
        going = int((~self.stopped & (self.steps < self.horizon)).sum())
        write(draw, (GAP, GAP), (self.about, f"{going} of {len(self.steps)} views move"), size.letters)
        middle = height // 2 + 2 * line
        box = (GAP, GAP + 3 * line, right, middle - 3 * line)
        draw.text((GAP, box[1] - line), "loss by step (gray: mean)", INK, font(size.letters - 1))
        own, mean = ([float(values) for values in each] for each in zip(*self._pairs(row), strict=True))
        curves(draw, box, {GRAY: mean, BLUE: own}, self.horizon + 1, size.letters - 1)
        ends(draw, box, "0", f"{self.horizon}", size.letters - 1)
        box = (GAP, middle, right, height - 2 * line - GAP)
        draw.text((GAP, box[1] - line), "steps of the views", INK, font(size.letters - 1))
        counts = np.bincount(self.steps, minlength=self.horizon + 1).tolist()
        bars(draw, box, counts, max(counts))
        mark(draw, box, int(self.steps[row]), len(counts))
        ends(draw, box, "0", f"{self.horizon}", size.letters - 1)
        return panel

    def _pairs(self, row: int) -> list[tuple[float, float]]:
        """A view's loss and the mean of all, after each step."""
        return [(values[row], values.mean()) for values in self.losses]
