"""The section of the settings on the images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from astra_gym.ssl_core.data.batch_source import KEEP_DATA
from astra_gym.ssl_core.data.datasets import DATASETS, check_files, load_dataset
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.settings.checks import check_path, check_truth
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import is_dotted


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The images and how they are kept; the defaults are the embedded digits, which need no download.

    Args:
        dataset: the images, or the dotted path of a custom `DatasetSpec`, my_module:MY_DATA; `stl10` trains on its
            5,000 labeled images, `stl10-unlabeled` on its 100,000 unlabeled ones.
        data_dir: folder of the data set: the one into which the archive of CIFAR-10, CIFAR-100 or STL-10 is unpacked,
            or the root of a tree of images.
        classes: text file with the names of the class folders of `folder` or `tiny-imagenet` that are read, one a line,
            such as a list of ImageNet-100; null: all.
        cache_dir: folder in which the decoded images of `folder` or `tiny-imagenet` are kept, so that they are decoded
            once and need not fit in memory. By default they are decoded into memory at every start.
        keep_data: place of the training images; host: memory or disk, with prefetching; auto: on the device if they
            are in memory and take at most a quarter of the device's free memory.
        download: whether CIFAR-10, CIFAR-100 and STL-10 may be downloaded into `data_dir`.
        limit: number of training images; null: all.
        test_limit: number of test images; null: all.
        image_size: side to which images are resized.
        drop_last: whether an epoch leaves out its last batch if that batch is smaller than the others (these are
            different images in every epoch); null: true, or in a run what the method's authors do. With false the
            number of views varies, which vector environments of views and agents that learn from views do not support;
            a single left-over image is left out anyway, since batch norm needs a variance.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    dataset: Annotated[str, Notes(choices=DATASETS, what="data set", custom=True)] = "digits"
    data_dir: Annotated[str | None, Notes(unit="DIR")] = None
    classes: Annotated[str | None, Notes(unit="FILE")] = None
    cache_dir: Annotated[str | None, Notes(unit="DIR")] = None
    keep_data: Annotated[str, Notes(choices=KEEP_DATA, what="place to keep the data")] = "auto"
    download: bool = True
    limit: Annotated[int | None, Notes(unit="IMAGES")] = None
    test_limit: Annotated[int | None, Notes(unit="IMAGES")] = None
    image_size: Annotated[int, Notes(unit="PIXELS")] = 16
    drop_last: bool | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if not is_dotted(self.dataset):
            # a custom data set is checked when it is loaded, because settings alone import no module
            check_files(self.dataset, cache_dir=self.cache_dir, classes=self.classes)
        check_truth("download", self.download)
        if self.drop_last is not None:
            check_truth("drop_last", self.drop_last)
        for name in ("data_dir", "cache_dir", "classes"):
            check_path(name, getattr(self, name))
        for name in ("image_size", "limit", "test_limit"):
            if getattr(self, name) is not None or name == "image_size":
                check_number(name, getattr(self, name), 1, math.inf, "a positive integer", whole=True)

    def load(self, on_progress: Callable[[int, int], None] | None = None) -> Split:
        """Load the data set, as `astra_gym.ssl_core.data.datasets.load_dataset` does."""
        return load_dataset(
            self.dataset,
            data_dir=self.data_dir,
            image_size=self.image_size,
            limit=self.limit,
            test_limit=self.test_limit,
            download=self.download,
            cache_dir=self.cache_dir,
            on_progress=on_progress,
            classes=self.classes,
        )
