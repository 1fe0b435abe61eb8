from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.ssl_core.models import checkpoint
from astra_gym.ssl_core.models.checkpoint import (
    CheckpointError,
    describe_network,
    encoder_name,
    kept_encoders,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.safety.plain_values import load_plain
from tests.helpers.tiny_networks import tiny_network


def test_round_trip_leaves_no_other_file(tmp_path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", "run", {"x": torch.arange(3), "y": {"z": [1, 2.5, "s", None]}})
    payload = load_checkpoint(path, "run")
    assert torch.equal(payload["x"], torch.arange(3))
    assert payload["y"] == {"z": [1, 2.5, "s", None]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_save_leaves_the_old_file_alone(tmp_path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", "run", {"x": 1})
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be written: x\.y is a function"):
        save_checkpoint(path, "run", {"x": {"y": lambda: None}})
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
    with pytest.raises(CheckpointError, match=r"a\?b\?\[31m.pt: no such checkpoint$"):
        load_checkpoint("a\nb\x1b[31m.pt", "run")
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
    payload = torch.load(good) | {"schema": 99}
    torch.save(payload, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(tmp_path / "new.pt", "run")


def test_code_in_a_file_is_not_run(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    torch.save({"format": "astra-gym", "x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="weights_only") as error:
        load_checkpoint(tmp_path / "bomb.pt", "run")
    said = str(error.value).replace(str(tmp_path), "")
    assert said.isprintable() and len(said) < 300


def test_load_network_from_a_file_and_from_a_run_folder(tmp_path) -> None:
    trained = tiny_network().eval()
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
    exported = save_checkpoint(tmp_path / "exported.pt", "encoder", {"state_dict": trained.state_dict()})
    with pytest.raises(CheckpointError, match="an exported encoder, in another layout: read it as --format"):
        load_network(exported)


def test_kept_encoders_are_listed_by_the_epoch_that_they_are_of(tmp_path) -> None:
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no run folder"):
        kept_encoders(tmp_path)
    checkpoints.mkdir()
    assert kept_encoders(tmp_path) == []
    trained = tiny_network()
    payload = {"network": describe_network(trained), "evaluation_route": "pgd", "step": 1}
    for epoch, reached in ((10_000, 10_000.0), (2, 2.5), (9_999, 9_999.25)):
        save_checkpoint(checkpoints / encoder_name(epoch), "encoder", payload | {"epoch": reached})
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


def saved(folder: Path, trained: TargetNetwork | None = None, route: object = "pgd", **changes: object) -> Path:
    """A kept encoder, with some of what describes its network changed."""
    described = describe_network(tiny_network() if trained is None else trained)
    payload = {"network": described | changes, "evaluation_route": route}
    return save_checkpoint(folder / "kept.pt", "encoder", payload)


def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_loaded_network_computes_in_float32_whatever_it_was_trained_in(tmp_path) -> None:
    half = tiny_network(precision="bf16")
    loaded, route = load_network(saved(tmp_path, half.eval()))
    exact = tiny_network().eval()(pixels(), route)
    found = loaded(pixels(), route)
    assert torch.equal(found.features, exact.features) and torch.equal(found.embeddings, exact.embeddings)
    assert not torch.equal(half(pixels(), route).features, exact.features)
    # what it was trained in stays on record
    assert loaded.arguments["precision"] == "bf16"


@pytest.mark.parametrize("call", ["features", "forward"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda x: (x * 255).to(torch.uint8),
            r"torch\.uint8: expected torch\.float32 in \[0, 1\]; divide bytes by 255",
        ),
        (lambda x: x * 255, r"images span \[.*, 25\d.*\]: expected values in \[0, 1\]; divide bytes by 255"),
        (lambda x: (x - 0.5) / 0.25, r"expected values in \[0, 1\].*leave normalization out"),
        (lambda x: x.masked_fill(x > 0.9, float("nan")), r"images span \[nan, nan\]: expected values in \[0, 1\]"),
        (lambda x: x.half(), r"torch\.float16: expected torch\.float32"),
        (lambda x: x.double(), r"torch\.float64: expected torch\.float32"),
        (lambda x: x[0], r"shape \(3, 8, 8\): expected \(n, 3, h, w\)"),
        (lambda x: x.permute(0, 2, 3, 1), r"shape \(4, 8, 8, 3\): expected \(n, 3, h, w\)"),
        (lambda x: x.numpy(), "images are of type ndarray: expected a tensor"),
    ],
)
def test_a_loaded_network_refuses_what_is_no_image(tmp_path, call: str, wrong, message: str) -> None:
    loaded, route = load_network(saved(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        getattr(loaded, call)(wrong(pixels()), route)
    assert len(str(error.value)) < 300


def test_a_loaded_network_takes_what_an_attack_gives_it_and_keeps_its_names(tmp_path) -> None:
    loaded, route = load_network(saved(tmp_path))
    edge = pixels().round()
    edge[0, 0, 0] = 1 + 1e-7  # what rounding leaves of a clip
    x = edge.requires_grad_()
    loaded.features(x, route).sum().backward()
    assert x.grad is not None and loaded.features(x[:0], route).shape == (0, loaded.feature_dim)
    assert loaded.double().features(pixels().double(), route).dtype == torch.float64
    assert loaded.state_dict().keys() == tiny_network().state_dict().keys()
    # where a device must not be waited for, nothing looks at values
    free, _ = load_network(tmp_path / "kept.pt", checks_images=False)
    free.features(pixels() * 255, route)
    assert not tiny_network().checks_images


def state(**changes: object) -> dict[str, object]:
    return dict(tiny_network().state_dict()) | changes


def test_of_a_whole_run_only_the_network_goes_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read_on = saved(tmp_path), []

    def read(file: Path, device: torch.device) -> Any:
        read_on.append(device)
        return load_plain(file, device)

    monkeypatch.setattr(checkpoint, "load_plain", read)
    # a device that is there on every machine stands for a GPU
    monkeypatch.setattr(checkpoint, "usable_device", lambda name: torch.device("meta" if name == "cuda" else name))
    network, _ = load_network(path, "cuda")
    assert read_on == [torch.device("cpu")] and {one.device.type for one in network.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"state": state(mean=torch.tensor(float("nan")).expand(1, 3, 1, 1).clone())},
            r"weights are not finite \(mean\)",
        ),
        ({"state": state(**{"backbone.conv.weight": torch.zeros(1)})}, r"of another shape: backbone\.conv\.weight"),
        ({"state": state(**{"backbone.conv.weight": 3})}, r"of another type: backbone\.conv\.weight"),
        ({"state": state(strange=torch.zeros(1))}, "not understood: strange"),
        ({"state": {}}, r"missing: mean and \d+ more"),
        ({"state": [1]}, "expected a network's arguments and its weights"),
        ({"arguments": None}, "expected a network's arguments and its weights"),
        ({"arguments": {"width": "4"}}, "its network cannot be built"),
        ({"arguments": {"width": 10**5}}, "do not fit its network"),  # 20 TB
        ({"arguments": {"arch": "vgg"}}, "its network cannot be built .*unknown architecture"),
        ({"arguments": {"color": 1}}, "its network cannot be built .*color"),
        ({"route": None}, r"route of evaluation is None: expected normal, pgd"),
        ({"route": "robust"}, r"route of evaluation is 'robust': expected normal, pgd"),
    ],
)
def test_an_edited_network_is_one_error(tmp_path, changes: dict[str, object], message: str) -> None:
    path = saved(tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) - len(str(path)) < 300 and "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_no_fault_of_the_file(tmp_path) -> None:
    path = saved(tmp_path)
    for read in (load_network, lambda path, device: load_checkpoint(path, "encoder", device)):
        with pytest.raises(ValueError, match="device is 'cuad': expected cpu, cuda") as error:
            read(path, "cuad")
        assert not isinstance(error.value, CheckpointError)
