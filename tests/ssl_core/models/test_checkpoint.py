import pickle

import pytest
import torch

from astra_gym.ssl_core.models.checkpoint import (
    CheckpointError,
    describe_network,
    encoder_path,
    kept_encoders,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from astra_gym.ssl_core.models.target_network import build_network


def network():
    return build_network(torch.Generator().manual_seed(0), arch="resnet10", width=4, projector_dim=8)


def test_round_trip_leaves_no_other_file(tmp_path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", "run", {"x": torch.arange(3), "y": {"z": [1, 2.5, "s", None]}})
    payload = load_checkpoint(path, "run")
    assert torch.equal(payload["x"], torch.arange(3))
    assert payload["y"] == {"z": [1, 2.5, "s", None]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_save_leaves_the_old_file_alone(tmp_path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", "run", {"x": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint(path, "run", {"x": lambda: None})
    assert load_checkpoint(path, "run")["x"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_bad_files_are_named(tmp_path) -> None:
    good = save_checkpoint(tmp_path / "good.pt", "run", {"x": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing.pt", "run")
    for name in ("cut", "text", "empty"):
        with pytest.raises(CheckpointError, match=rf"{name}\.pt: truncated"):
            load_checkpoint(tmp_path / f"{name}.pt", "run")
    for name in ("foreign", "list"):
        with pytest.raises(CheckpointError, match="foreign"):
            load_checkpoint(tmp_path / f"{name}.pt", "run")
    with pytest.raises(CheckpointError, match="kind 'run', expected 'agent'"):
        load_checkpoint(good, "agent")
    with pytest.raises(CheckpointError, match="kind 'run', expected 'agent' or 'encoder'"):
        load_checkpoint(good, ("agent", "encoder"))
    assert load_checkpoint(good, ("encoder", "run"))["kind"] == "run"
    with pytest.raises(CheckpointError, match="kind 'run', expected 'agent' or 'encoder'"):
        load_checkpoint(good, ("agent", "encoder"))
    assert load_checkpoint(good, ("encoder", "run"))["kind"] == "run"
    with pytest.raises(CheckpointError, match="kind 'run', expected 'agent' or 'encoder'"):
        load_checkpoint(good, ("agent", "encoder"))
    assert load_checkpoint(good, ("encoder", "run"))["kind"] == "run"
    payload = torch.load(good) | {"schema": 99}
    torch.save(payload, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(tmp_path / "new.pt", "run")


def test_code_in_a_file_is_not_run(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    torch.save({"format": "astra-gym", "x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="weights_only"):
        load_checkpoint(tmp_path / "bomb.pt", "run")


def test_load_network_from_a_file_and_from_a_run_folder(tmp_path) -> None:
    trained = network().eval()
    (tmp_path / "checkpoints").mkdir()
    payload = {"network": describe_network(trained), "evaluation_route": "pgd"}
    path = save_checkpoint(tmp_path / "checkpoints" / "last.pt", "run", payload)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    for source in (path, tmp_path):
        loaded, route = load_network(source)
        assert route == "pgd" and not loaded.training
        assert torch.equal(loaded(images, route).features, trained(images, "pgd").features)
    assert torch.equal(before, torch.get_rng_state())


def test_kept_encoders_are_listed_by_the_epoch_that_they_are_of(tmp_path) -> None:
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no run folder"):
        kept_encoders(tmp_path)
    checkpoints.mkdir()
    assert kept_encoders(tmp_path) == []
    trained = network()
    payload = {"network": describe_network(trained), "evaluation_route": "pgd", "step": 1}
    for epoch, reached in ((10_000, 10_000.0), (2, 2.5), (9_999, 9_999.25)):
        save_checkpoint(encoder_path(checkpoints, epoch), "encoder", payload | {"epoch": reached})
    save_checkpoint(checkpoints / "last.pt", "run", payload | {"epoch": 10_000.0})
    expected = [(2.5, "epoch-0002.pt"), (9_999.25, "epoch-9999.pt"), (10_000.0, "epoch-10000.pt")]
    found = kept_encoders(tmp_path)
    assert [(epoch, path.name) for epoch, path in found] == expected
    loaded, route = load_network(found[0][1])
    assert route == "pgd" and not loaded.training
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    found[0][1].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"epoch-0002\.pt: truncated"):
        kept_encoders(tmp_path)
    save_checkpoint(found[0][1], "agent", payload)
    with pytest.raises(CheckpointError, match="kind 'agent', expected 'run' or 'encoder'"):
        load_network(found[0][1])
