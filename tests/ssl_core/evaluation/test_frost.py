"""Frost, the one corruption that needs photographs, or does without."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from astra_gym.ssl_core.evaluation import corruptions
from astra_gym.ssl_core.evaluation.corruptions import FROST_FILES, corrupt, load_photographs
from astra_gym.ssl_core.evaluation.severities import nearest_table
from tests.helpers.draws import generator

CONSTANTS = nearest_table(32, 32).constants["frost"]


@pytest.fixture
def frost_folder(tmp_path: Path) -> Path:
    """Photographs of one color each, as PNG and JPEG files, and a sixth that must not be drawn."""
    for index, file in enumerate([*FROST_FILES, "frost6.jpg"]):
        Image.new("RGB", (560, 315), (40 * index, 40 * index, 40 * index)).save(tmp_path / file)
    return tmp_path


def test_frost_adds_a_share_of_one_of_the_five_photographs(frost_folder: Path) -> None:
    photographs = load_photographs(frost_folder)
    assert [tuple(one.shape) for one in photographs] == [(3, 315, 560)] * 5
    images = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    corrupted = corrupt(images, "frost", 3, generator(), photographs=photographs)
    of_image, of_frost = CONSTANTS[2]
    expected = [int(of_image * 100 + of_frost * 40 * index + 1e-6) for index in range(5)]
    levels, counts = corrupted[:, 0, 0, 0].unique(return_counts=True)
    assert torch.equal(corrupted, corrupted[:, :1, :1, :1].expand_as(images))
    assert levels.tolist() == expected
    assert counts.min() > 200 / 5 / 2


def test_frost_is_a_crop_of_the_photograph_at_the_published_scale() -> None:
    """Five pixels of a photograph make one for images of 32 pixels: the middle one's color."""
    photograph = torch.randint(256, (3, 315, 560), generator=generator()).to(torch.uint8)
    small = photograph[:, 2::5, 2::5]
    black = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    _, of_frost = CONSTANTS[4]
    shares = (of_frost * small.double() + 1e-6).floor()
    places = set()
    for one in corrupt(black, "frost", 5, generator(), photographs=[photograph] * 5):
        windows = shares.unfold(1, 32, 1).unfold(2, 32, 1)
        [place] = (windows == one[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
        places.add(tuple(place))
    assert len(places) > 15


def test_a_photograph_that_is_too_small_is_enlarged() -> None:
    photographs = [torch.full((3, 40, 50), 200, dtype=torch.uint8)] * 5
    corrupted = corrupt(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), "frost", 1, generator(), photographs=photographs)
    assert corrupted.unique().tolist() == [60]


def test_frost_without_photographs_has_their_colors_and_contrast() -> None:
    black = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    share = CONSTANTS[4][1]
    frost = corrupt(black, "frost", 5, generator()).double().numpy() / 255 / share
    colors, contrasts = corruptions._FROST_COLORS, corruptions._FROST_CONTRASTS
    assert frost.mean((0, 2, 3)) == pytest.approx(colors.mean(0), abs=0.03)
    assert frost[:, 2].std((1, 2)).mean() == pytest.approx(contrasts.mean(), rel=0.2)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_missing_photographs_are_refused(content: bytes | None, frost_folder: Path) -> None:
    file = frost_folder / FROST_FILES[3]
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"no photographs of frost: expected frost1\.png, .*frost5\.jpg"):
        load_photographs(frost_folder)
