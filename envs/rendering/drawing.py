"""Letters, views and curves on a frame, by Pillow."""

from collections.abc import Collection
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from astra_gym.envs.observations import as_pixels

INK, LIGHT, BLUE, ORANGE = "#333333", "#dddddd", "#0072b2", "#d55e00"


@cache
def font(size: int) -> Any:
    """Return the font that comes with Pillow, so that frames are the same on every machine."""
    return ImageFont.load_default(size)


def curve(
    draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], values: Collection[float], length: int
) -> None:
    """Draw values from left to right, with room for `length` of them, between their smallest and largest."""
    left, top, right, bottom = box
    draw.rectangle(box, None, LIGHT)
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = max(high - low, 1e-9)
    points = [
        (left + (right - left) * place / (length - 1), bottom - 2 - (bottom - top - 4) * (value - low) / span)
        for place, value in enumerate(values)
    ]
    if len(points) > 1:
        draw.line(points, BLUE, 1)
    else:
        draw.point(points, BLUE)


def label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, letters: int) -> None:
    """Write on a white ground."""
    draw.rectangle(draw.textbbox(place, text, font(letters)), "white")
    draw.text(place, text, INK, font(letters))


def tiles_of(views: Tensor, edge: int) -> list[Image.Image]:
    """Return views (n, 3, h, w) in [0, 1] as square pictures of an edge in pixels, without smoothing."""
    pixels = as_pixels(views).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(view).resize((edge, edge), Image.Resampling.NEAREST) for view in pixels]
