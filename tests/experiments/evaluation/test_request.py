"""What a command line asks an evaluation for."""

from dataclasses import replace
from pathlib import Path

import torch

from astra_gym.experiments import train_agent
from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation.encoders import own
from astra_gym.experiments.evaluation.flags import evaluation_parser
from astra_gym.experiments.evaluation.request import data_of, default_folder
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
