"""What a command line asks an evaluation for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_gym.experiments import evaluate_encoder, train_agent
from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation.encoders import own
from astra_gym.experiments.evaluation.flags import evaluation_parser
from astra_gym.experiments.evaluation.request import data_of, default_folder
from astra_gym.ssl_core.evaluation.results import read_results
from tests.helpers.archives import write_stl10
from tests.helpers.tiny_training import TINY


def test_each_encoder_of_a_run_has_its_own_folder_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_agent.main([*TINY, "--epochs=1", "--keep_every=1", "--evaluate=false", f"--run_dir={run}"]) == 0
    kept = run / "checkpoints" / "epoch-0001.pt"
    for encoder, place, folder in (
        (run, "", "evaluation"),
        (run, "svhn", "evaluation-svhn"),
        (kept, "", "evaluation-epoch-0001"),
    ):
        asked, subject = evaluation_parser(None).read([str(encoder)]), own(encoder, torch.device("cpu"))
        with Decoding(kind="off") as decoding:
            data = data_of(asked, subject, decoding)
        assert data.place == "" and default_folder(asked, subject, replace(data, place=place)) == run / folder


@pytest.mark.slow
def test_a_run_on_unlabeled_images_is_probed_and_evaluated_on_the_labeled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stl10(tmp_path, monkeypatch, unlabeled=24)
    run = tmp_path / "run"
    words = f"--dataset=stl10-unlabeled --data_dir={tmp_path} --run_dir={run} --download=false --limit=20"
    words += " --test_limit=30 --image_size=8 --batch_size=5 --width=2 --epochs=1 --probe_epochs=1 --probe_every=1"
    words += " --eval_epsilons=[8/255]"
    assert train_agent.main([*words.split(), "--agent=fixed", "--progress=off"]) == 0
    assert {row.metric for row in read_results(run / "results" / "slf.json")} == {"SA", "RA"}
    asked, subject = evaluation_parser(None).read([str(run)]), own(run, torch.device("cpu"))
    with Decoding(kind="off") as decoding:
        data = data_of(asked, subject, decoding)
    assert (data.name, data.place, len(data.split.train), len(data.split.test)) == ("stl10", "", 40, 30)
    assert data.split.train.images.shape[2] == 8 and data.split.train.labels is not None
    assert not any("pre-trained on" in one or "training images only" in one for one in data.deviations)
    quick = ["--protocols", "ridge", "--attacks", "none", "--progress", "off"]
    assert evaluate_encoder.main([str(run), *quick]) == 0
    assert {row.dataset for row in read_results(run / "evaluation" / "evaluation.json")} == {"stl10"}
