"""Write a data set's images as a folder of photographs: python docs/make_photographs.py OUT --data_dir DIR

OUT has the files train/CLASS/NUMBER.png and test/CLASS/NUMBER.png, enlarged to --side pixels by a bicubic filter.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.data.settings import DataSection


def write(images: ImageSet, folder: Path, side: int) -> None:
    """Write the images as PNG files of `side` x `side` pixels, each into the folder of its class."""
    for row, label in enumerate(required_labels(images, "photographs in class folders").tolist()):
        place = folder / images.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images.images[row].permute(1, 2, 0).numpy())
        picture.resize((side, side), Image.Resampling.BICUBIC).save(place / f"{row:05}.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data_dir", metavar="DIR")
    parser.add_argument("--limit", type=int, default=2500, help="training images")
    parser.add_argument("--test_limit", type=int, default=1000, help="test images")
    parser.add_argument("--image_size", type=int, default=32, help="side of the images that are read")
    parser.add_argument("--side", type=int, default=64, help="side of the images that are written")
    given = parser.parse_args(argv)
    if given.out.exists():
        parser.error(f"{given.out} exists: give a new folder")
    names = ("dataset", "data_dir", "limit", "test_limit", "image_size")
    try:
        data = DataSection(**{name: getattr(given, name) for name in names}).load()
    except ValueError as error:
        parser.error(str(error))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out.parent) as unfinished:
        whole = Path(unfinished) / given.out.name
        write(data.train, whole / "train", given.side)
        write(data.test, whole / "test", given.side)
        whole.rename(given.out)


if __name__ == "__main__":
    main()
