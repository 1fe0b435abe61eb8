"""A data set written as files is read back as a folder of images."""

import importlib.util
from pathlib import Path

import pytest

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.data.settings import DataSection

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_photographs.py"
SPEC = importlib.util.spec_from_file_location("make_photographs", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


def labeled(data: ImageSet) -> list[tuple[str, bytes]]:
    labels = required_labels(data, "this test").tolist()
    return sorted(
        (data.classes[label], image.numpy().tobytes()) for label, image in zip(labels, data.images, strict=True)
    )


def test_photographs_are_the_images_in_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [str(tmp_path / "new" / "pictures"), "--dataset=digits", "--limit=200", "--test_limit=60"]
    words += ["--image_size=16", "--side=16"]
    module.main(words)
    given = DataSection(dataset="digits", limit=200, test_limit=60).load()
    read = DataSection(dataset="folder", data_dir=str(tmp_path / "new" / "pictures"), image_size=16).load()
    for one, other in ((given.train, read.train), (given.test, read.test)):
        assert labeled(one) == labeled(other)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pictures"]
    with pytest.raises(SystemExit):
        module.main(words)
    assert "exists: give a new folder" in capsys.readouterr().err
