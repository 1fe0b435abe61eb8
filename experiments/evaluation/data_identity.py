"""Whether a folder of images is the one that an encoder was trained on, and what it is called where it is another."""

import hashlib
import os
import re
from pathlib import Path

import PIL

from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.ssl_core.data.image_digests import digest_images
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.utils.files import resolved

FOLDER = "folder"
"""The data set of which there are many, and so the one that needs a name of its own."""
LONGEST = 60
"""Characters of a folder's name that are kept."""


def is_own_folder(subject: Subject, train: ImageSet, data_dir: str | None) -> bool:
    """Whether training images, read as the run's settings say, are those that the run was trained on.

    Of a run that keeps no digests the place decides.

    Args:
        subject: an encoder of a run on a folder.
        train: the images at the run's size; more or fewer than the run's where limits differ.
        data_dir: where they lie, None for the run's own place.
    """
    if subject.trained is not None:
        return subject.trained.train.begins_like(digest_images(train))
    own = subject.settings.data_dir if subject.settings else None
    return data_dir is None or (own is not None and _resolved(data_dir) == _resolved(own))


def folder_name(data_dir: str | Path) -> tuple[str, str]:
    """The name of a folder as a data set in rows, and the same for a path, where two folders never share it."""
    path = _resolved(data_dir)
    name = re.sub(r"[^\w.-]", "_", path.name)[:LONGEST] or "root"
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{FOLDER}:{name}", f"{FOLDER}-{name}-{mark}"


def decoder_notes(subject: Subject, test: ImageSet) -> tuple[str, ...]:
    """A note where image files are decoded by another program than the run's, which may give other pixels."""
    now = f"Pillow {PIL.__version__}"
    then = subject.trained.decoder if subject.trained else now
    if not test.paths or then == now:
        return ()
    return (f"the run's images were decoded by {then}, these by {now}: images trained on may not be recognized",)


def _resolved(data_dir: str | Path) -> Path:
    return resolved(data_dir)
