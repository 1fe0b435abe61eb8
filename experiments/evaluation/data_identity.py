"""Whether a folder of images is the one that an encoder was trained on, and the name of another folder."""

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
"""The data set that may be any folder, and so needs a name for each."""
LONGEST = 60
"""Characters of a folder's name that are kept."""


def is_own_folder(subject: Subject, train: ImageSet, data_dir: str | None) -> bool:
    """Return whether training images, read by the run's settings, are those that the run was trained on.

    For a run that keeps no digests, the path decides.

    Args:
        subject: an encoder of a run on a folder.
        train: images at the run's size; more or fewer than the run's if limits differ.
        data_dir: their folder, None for the run's own.
    """
    if subject.trained is not None:
        return subject.trained.train.begins_like(digest_images(train))
    own = subject.settings.data.data_dir if subject.settings else None
    return data_dir is None or (own is not None and resolved(data_dir) == resolved(own))


def folder_name(data_dir: str | Path) -> tuple[str, str]:
    """Return a folder's name as a data set in rows, and a name for paths, which two folders never share."""
    path = resolved(data_dir)
    name = re.sub(r"[^\w.-]", "_", path.name)[:LONGEST] or "root"
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{FOLDER}:{name}", f"{FOLDER}-{name}-{mark}"


def decoder_notes(subject: Subject, test: ImageSet) -> tuple[str, ...]:
    """Return a note if image files are decoded by another program than the run's, which may give other pixels."""
    now = f"Pillow {PIL.__version__}"
    then = subject.trained.decoder if subject.trained else now
    if not test.paths or then == now:
        return ()
    return (f"the run's images were decoded by {then}, these by {now}: images trained on may not be recognized",)
