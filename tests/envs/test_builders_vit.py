"""Worlds whose target network is a vision transformer of timm, under methods that need no routes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.comparison.gpu_memory import kept_bytes
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training.forward_credit import ForwardCredit
from tests.helpers.draws import generator

TINY = {"arch": "timm:vit_tiny_patch16_224", "image_size": 8, "patch_size": 4}
SIZES = {"limit": 26, "test_limit": 26, "batch_size": 4, "projector_hidden": 8, "projector_dim": 8, "epochs": 1}
DINO = {"hidden": 8, "bottleneck": 6, "prototypes": 9}


def world(method: str, **changes: Any) -> AttackEngine:
    return AttackEngine(WorldSettings.given(dataset="digits", method=method, **TINY, **SIZES | changes), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"), [("simclr", None), ("acl", None), ("astra", None), ("dino", DINO), ("deacl", None)]
)
def test_methods_train_it(method: str, options: dict | None, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method_kwargs": options, "lr": 1e-3}
    if method == "deacl":
        teacher = build_network(generator(), **TINY, routes=("normal",))
        payload = {"network": describe_network(teacher), "evaluation_route": "normal"}
        changes["teacher"] = str(save_checkpoint(tmp_path / "teacher.pt", "run", payload))
    engine = world(method, **changes)
    network = engine.learner.network
    if method == "deacl":
        assert torch.equal(network.backbone.model.pos_embed, teacher.backbone.model.pos_embed)
    before = {name: value.clone() for name, value in network.named_parameters()}
    budget = ConstantBudget(epsilon=8 / 255, step_size=4 / 255, steps=2).expand(engine.num_attacked)
    for _ in range(2):
        record = engine.play(budget if engine.method.attack.exists else None)
    assert all(value.isfinite().all() for value in network.parameters())
    unchanged = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    # DeACL compares features, so it trains no projector
    assert {name for name in unchanged if method != "deacl" or not name.startswith("projector.")} == set()
    if engine.method.attack.exists:
        assert record.terms["adversarial"].mean() > record.terms["clean"].mean()


def test_what_an_update_keeps_and_a_forward_mode_pass_are_known_for_it() -> None:
    engine = world("acl", recompute=True)
    network, views = engine.learner.network, engine.all_views
    sparing = kept_bytes(network, engine.image_shape)
    # the image, and the input of every block: 5 tokens of 192 float32 values
    assert sparing > 4 * (3 * 8 * 8 + 12 * 5 * 192)
    network.backbone.recompute = False
    assert sparing < 0.3 * kept_bytes(network, engine.image_shape)
    way = [torch.ones_like(value) for value in network.parameters()]
    shares = ForwardCredit(engine.learner, views, way).shares((views + 0.01).clamp(0, 1))
    assert shares.shape == (8,) and shares.isfinite().all() and shares.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "daq-sdp", "teacher": "t"},
            "daq-sdp keeps batch norms apart by the routes nature, .* take a",
        ),
        ({"method": "advcl", "teacher": "t"}, "advcl keeps batch norms apart"),
        ({"image_size": 10}, "patches of 4 pixels .* do not divide images of 10"),
        ({"width": 4}, "width is 4, but timm:vit_tiny_patch16_224 has none: leave it out"),
        ({"stem": "imagenet"}, "stem is 'imagenet', but timm:vit_tiny_patch16_224 has none: leave it out"),
        ({"arch": "resnet10"}, "patch_size is 4, but resnet10 has none: leave it out"),
        ({"arch": "timm:vit"}, "arch is 'timm:vit': expected a vision transformer of timm"),
        ({"arch": "vit_tiny_patch16_224"}, "timm:NAME"),
        ({"patch_size": 0}, "patch_size is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        WorldSettings.given(**{"method": "acl"} | TINY | changes)
    assert len(str(refused.value)) < 300
