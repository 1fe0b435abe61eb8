"""What is known, and what is not, of the images that an encoder has seen before its run."""

from pathlib import Path

import pytest

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.seen_images import check_unseen, run_images
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.evaluation.sanity import TrainedOnError


def test_a_start_of_which_no_images_are_known_has_a_note(tmp_path: Path) -> None:
    sizes = {"image_size": 8, "limit": 30, "test_limit": 20}
    settings = Settings.of(method="acl", init_from=str(tmp_path / "theirs.pt"), **sizes)
    data = settings.data.load()
    notes = check_unseen(settings, data, run_images(settings, data))
    assert "it is not known which images the encoder of init_from was trained on" in notes
    # a run's folder knows them
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    RunImages.of(data).write(run / "images.digests")
    known = settings.replace(init_from=str(run / "checkpoints" / "last.pt"))
    assert not any("not known" in note for note in check_unseen(known, data, run_images(known, data)))


def test_the_home_folder_of_a_teacher_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.of(method="deacl", teacher="~/teacher", image_size=8, limit=30, test_limit=20)
    data = settings.data.load()
    (tmp_path / "teacher").mkdir()
    RunImages.of(Split(data.test, data.train)).write(tmp_path / "teacher" / "images.digests")
    with pytest.raises(TrainedOnError, match="trained on by the teacher"):
        check_unseen(settings, data, run_images(settings, data))
