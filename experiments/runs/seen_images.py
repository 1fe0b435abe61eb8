"""The images that a run's encoder has seen before the run: those of its teacher, and of the encoder it started from."""

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.evaluation.sanity import check_disjoint, check_untrained
from astra_gym.ssl_core.utils.files import expanded

START = "the encoder of init_from"


def run_images(settings: Settings, data: Split) -> RunImages:
    """Compute the digests of a run's data, and of what its encoder has seen before."""
    return RunImages.of(data, *(images for images in _earlier(settings).values() if images is not None))


def check_unseen(settings: Settings, data: Split, images: RunImages) -> list[str]:
    """Check that no test image is trained on.

    Args:
        settings: settings of the run.
        data: its data.
        images: their `run_images`.

    Returns:
        What must be reported about the images beside values that are measured on them.

    Raises:
        TrainedOnError: with the number, examples, and a remedy.
    """
    earlier = _earlier(settings)
    notes = check_disjoint(data.train, data.test, images)
    if START in earlier and earlier[START] is None:
        notes.append(f"it is not known which images {START} was trained on")
    return notes + check_untrained(images.beside(images.train), data.test, " or ".join(earlier))


def _earlier(settings: Settings) -> dict[str, RunImages | None]:
    """Images of the runs of the teacher and of the start, by name; None if their folders do not keep them."""
    files = {"the teacher": settings.method.teacher, START: settings.network.init_from}
    return {name: RunFolder.of(expanded(file)).images() for name, file in files.items() if file is not None}
