import argparse
from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.models.weights.state_file import read_content, read_state

STATE = {"conv1.weight": torch.ones(2, 3, 3, 3)}


@pytest.mark.parametrize(
    "payload, said",
    [
        ({"weights": STATE, "epoch": 1}, r"holds state dicts \(weights\): save the one that is meant alone"),
        ({"student": STATE, "teacher": STATE}, r"holds several state dicts \(student, teacher\): save the one"),
        ({"model": {0: torch.ones(1)}, "epoch": 1}, "holds model, epoch"),
        ({0: torch.ones(1), ("a", 1): torch.ones(1)}, r"holds 0, \('a', 1\)"),
        ({}, "holds nothing"),
        ([1, 2], "holds list"),
    ],
)
def test_a_file_without_one_state_dict_is_refused_with_what_it_holds(payload: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_state(Path("theirs.pt"), payload, [])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: expected an encoder's file in it"):
        read_content(tmp_path)


@pytest.mark.parametrize("order", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."])
def test_torchs_wrappers_are_taken_off_in_any_order(order: str) -> None:
    wrapped = {f"{order}{name}": value for name, value in STATE.items()}
    assert read_state(Path("theirs.pt"), {"state_dict": wrapped}, []) == (STATE, {})


def test_options_in_a_checkpoint_are_data_and_are_trusted_no_further(tmp_path: Path) -> None:
    notes: list[str] = []
    torch.save({"net": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "theirs.pt")
    state, _ = read_state(tmp_path, read_content(tmp_path / "theirs.pt"), notes)
    assert list(state) == list(STATE) and notes == ["left out of the file: args"]
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
