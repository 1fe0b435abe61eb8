"""The section on the images: what it refuses, and what it loads."""

import pytest

from astra_gym.ssl_core.data.settings import DataSection


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"cache_dir": "here"}, "cache_dir is 'here', but digits is not decoded"),
        ({"dataset": "folder", "data_dir": "x", "cache_dir": ""}, "cache_dir is empty: expected a path"),
        ({"data_dir": ""}, "data_dir is empty"),
        ({"data_dir": 3}, "data_dir is 3: expected a path"),
        ({"dataset": "cifar10", "cache_dir": "here"}, "cache_dir is 'here', but cifar10 is not decoded"),
        ({"keep_data": "hos"}, "unknown place to keep the data 'hos'.*did you mean 'host'"),
        ({"download": "no"}, "download is 'no': expected true or false"),
        ({"drop_last": 1}, "drop_last is 1: expected true or false"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSection(**setting)


def test_it_loads_the_images_that_it_describes() -> None:
    data = DataSection(limit=12, test_limit=8, image_size=8).load()
    assert data.train.images.shape == (12, 3, 8, 8) and len(data.test) == 8
