"""Letters, views, bars and curves on a frame, by Pillow."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from astra_gym.envs.observations import as_pixels

INK, GRAY, LIGHT, BLUE, ORANGE = "#333333", "#999999", "#dddddd", "#0072b2", "#d55e00"
MODES = ["rgb_array"]
FPS = 4
"""Frames a second of a video: a step of the environment is worth looking at."""
DRAWN: dict[str, Any] = {"render_modes": MODES, "render_fps": FPS}
"""The metadata of an environment that can be drawn."""
GAP = 6
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


class FrameSize(NamedTuple):
    """Pixels of a view's edge, of the panel's width, and of the letters."""

    tile: int
    panel: int
    letters: int

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return self.letters + 3

    def height(self, rows: int, captions: int) -> int:
        """Height of a frame with rows of views and lines under them."""
        return rows * (self.tile + GAP) + GAP + captions * self.line + GAP


LARGE = FrameSize(tile=96, panel=190, letters=12)
SMALL = FrameSize(tile=80, panel=160, letters=11)


def check_render_mode(mode: str | None) -> str | None:
    """Return the render mode; raise a ValueError if there is no such mode."""
    if mode is not None and mode not in MODES:
        raise ValueError(f"render_mode is {mode!r}: expected 'rgb_array' or None")
    return mode


def warn_without_mode() -> None:
    """Warn that there is no render mode."""
    gym.logger.warn("render() draws nothing without a render mode: make the environment with render_mode='rgb_array'")


@cache
def font(size: int) -> Any:
    """Return the font that comes with Pillow, so that frames are the same on every machine."""
    return ImageFont.load_default(size)


def canvas(width: float, height: float) -> Image.Image:
    """Return a white picture, its sides rounded up to even numbers, which a video's encoder wants."""
    wide, high = (int(side) + int(side) % 2 for side in (width, height))
    return Image.new("RGB", (wide, high), "white")


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], lines: Sequence[str], letters: int) -> None:
    """Write lines one below the other."""
    for row, text in enumerate(lines):
        draw.text((place[0], place[1] + row * (letters + 3)), text, INK, font(letters))


def curves(
    draw: ImageDraw.ImageDraw, box: Box, lines: Mapping[str, Collection[float]], length: int, letters: int = 0
) -> None:
    """Draw values from left to right, by color, with room for `length` of them, between the smallest and largest of all
    lines, which are written at the right if there is a size of letters."""
    left, top, right, bottom = box
    draw.rectangle(box, None, LIGHT)
    every = [value for values in lines.values() for value in values]
    low, high = min(every, default=0.0), max(every, default=0.0)
    span = max(high - low, 1e-9)
    if every and letters:
        draw.text((right - 2, top + 1), f"{high:.3g}", GRAY, font(letters), anchor="ra")
        draw.text((right - 2, bottom - 3), f"{low:.3g}", GRAY, font(letters), anchor="rs")
    for color, values in lines.items():
        points = [
            (left + (right - left) * place / (length - 1), bottom - 2 - (bottom - top - 4) * (value - low) / span)
            for place, value in enumerate(values)
        ]
        if len(points) > 1:
            draw.line(points, color, 1)
        for x, y in points if len(points) < 20 else ():
            draw.rectangle((x - 1, y - 1, x + 1, y + 1), color)


def bars(draw: ImageDraw.ImageDraw, box: Box, values: Sequence[float], most: float) -> None:
    """Draw values of 0 to `most` as bars, from left to right."""
    left, top, right, bottom = box
    wide = (right - left) / len(values)
    for place, value in enumerate(values):
        if value:
            high = bottom - (bottom - top) * value / most
            draw.rectangle((left + place * wide, high, left + (place + 1) * wide - 1, bottom), BLUE)
    draw.line((left, bottom, right, bottom), INK)


def mark(draw: ImageDraw.ImageDraw, box: Box, place: int, places: int) -> None:
    """Mark one of the bars in a box."""
    left, _, right, bottom = box
    wide = (right - left) / places
    draw.rectangle((left + place * wide, bottom + 1, left + (place + 1) * wide - 1, bottom + 3), ORANGE)


def ends(draw: ImageDraw.ImageDraw, box: Box, first: str, last: str, letters: int) -> None:
    """Write below a box what its left and its right end are."""
    draw.text((box[0], box[3] + 1), first, INK, font(letters))
    draw.text((box[2], box[3] + 1), last, INK, font(letters), anchor="ra")


def label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, letters: int) -> None:
    """Write on a white ground."""
    draw.rectangle(draw.textbbox(place, text, font(letters)), "white")
    draw.text(place, text, INK, font(letters))


def tiles_of(views: Tensor, edge: int) -> list[Image.Image]:
    """Return views (n, 3, h, w) in [0, 1] as square pictures of an edge in pixels, without smoothing."""
    pixels = as_pixels(views).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(view).resize((edge, edge), Image.Resampling.NEAREST) for view in pixels]


class AttackedTiles:
    """Rows of clean views, attacked views and the change between them, with captions below.

    Args:
        clean, attacked: (n, 3, h, w) in [0, 1].
        reach: the change that is drawn as black or white; none is gray.
        size: sizes of the parts.
    """

    rows = 3

    def __init__(self, clean: Tensor, attacked: Tensor, reach: float, size: FrameSize) -> None:
        change = ((attacked - clean) / (2 * reach) + 0.5).clamp(0, 1)
        self.tiles = [tiles_of(views, size.tile) for views in (clean, attacked, change)]
        self.labels = ("clean", "attacked", f"±{255 * reach:.3g}/255")
        self.size = size

    def frame(self, shown: Mapping[int, Sequence[str]], panel: Image.Image) -> Image.Image:
        """Return a picture of some views, the panel at its right.

        Args:
            shown: captions by row of the views.
            panel: a picture as high as the frame.
        """
        size = self.size
        left = len(shown) * (size.tile + GAP) + GAP
        picture = canvas(left + panel.width, panel.height)
        draw = ImageDraw.Draw(picture)
        for column, (row, captions) in enumerate(shown.items()):
            at = GAP + column * (size.tile + GAP)
            for line, views in enumerate(self.tiles):
                picture.paste(views[row], (at, GAP + line * (size.tile + GAP)))
            write(draw, (at, GAP + self.rows * (size.tile + GAP)), captions, size.letters)
        for line, text in enumerate(self.labels):
            label(draw, (GAP, GAP + line * (size.tile + GAP)), text, size.letters - 2)
        picture.paste(panel, (left, 0))
        return picture


def frame_of(picture: Image.Image) -> np.ndarray:
    """Return a picture as (h, w, 3) uint8."""
    return np.asarray(picture)
