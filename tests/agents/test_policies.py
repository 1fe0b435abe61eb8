"""Strategy networks: distributions, initialization, images."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from astra_gym.agents.policies import HEADS, ImageExtractor, StrategyPolicy, batch_statistics, build_policy
from astra_gym.ssl_core.training.optim import LARS
from tests.helpers.draws import generator

FEATURES = spaces.Box(-10, 10, (5,), np.float32)
IMAGES = spaces.Box(0, 255, (3, 8, 8), np.uint8)
ACTIONS = {
    "factored": spaces.MultiDiscrete([4, 3]),
    "flat": spaces.Discrete(12),
    "continuous": spaces.Box(-1, 1, (3,), np.float32),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_log_prob_and_entropy_are_those_of_torch_distributions(kind: str) -> None:
    policy = build_policy(generator(), FEATURES, ACTIONS[kind], uniform_start=False)
    observation = torch.randn((9, 5), generator=generator(1))
    actions = policy.sample(observation, generator(2))
    log_prob, entropy = policy.log_prob_entropy(observation, actions)
    outputs = policy(observation)
    if kind == "continuous":
        expected = Independent(Normal(outputs, policy.log_std.exp()), 1)
        torch.testing.assert_close(log_prob, expected.log_prob(actions))
        torch.testing.assert_close(entropy, expected.entropy())
        return
    heads = [Categorical(logits=each) for each in outputs.split(policy.choices, 1)]
    columns = actions.view(9, -1).unbind(1)
    torch.testing.assert_close(log_prob, sum(h.log_prob(a) for h, a in zip(heads, columns, strict=True)))
    torch.testing.assert_close(entropy, sum(h.entropy() for h in heads))


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [("factored", (9, 2), torch.int64), ("flat", (9,), torch.int64), ("continuous", (9, 3), torch.float32)],
)
def test_samples_have_the_space_s_shape_and_dtype(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    actions = build_policy(generator(), FEATURES, ACTIONS[kind]).sample(torch.zeros(9, 5), generator())
    assert actions.shape == shape and actions.dtype is dtype


def test_samples_follow_the_probabilities() -> None:
    policy = build_policy(generator(), FEATURES, spaces.Discrete(4), uniform_start=False)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    observation = torch.full((1, 5), 0.3)
    expected = policy(observation).softmax(1)[0]
    drawn = policy.sample(observation.expand(40_000, 5), generator(3))
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 40_000, expected, atol=0.01, rtol=0)


def test_gaussian_samples_have_mean_and_deviation() -> None:
    policy = build_policy(generator(), FEATURES, ACTIONS["continuous"], log_std=-1.0, uniform_start=False)
    drawn = policy.sample(torch.full((40_000, 5), 0.3), generator(3))
    torch.testing.assert_close(drawn.mean(0), policy(torch.full((1, 5), 0.3))[0], atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((3,), math.exp(-1)), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ACTIONS)
def test_deterministic_is_the_most_probable_action(kind: str) -> None:
    policy = build_policy(generator(), FEATURES, ACTIONS[kind], uniform_start=False)
    observation = torch.randn((9, 5), generator=generator(1))
    chosen = policy.sample(observation, generator(), deterministic=True)
    best, _ = policy.log_prob_entropy(observation, chosen)
    for seed in range(20):
        other, _ = policy.log_prob_entropy(observation, policy.sample(observation, generator(seed)))
        assert (other <= best + 1e-6).all()


@pytest.mark.parametrize("space", [FEATURES, IMAGES])
@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_weights_come_from_the_generator_alone(space: spaces.Box, network: str) -> None:
    before = torch.get_rng_state()
    first, same, other = (
        build_policy(generator(seed), space, ACTIONS["factored"], image_network=network, width=4) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("heads", ["joint", "separate"])
def test_uniform_start_is_nearly_uniform(heads: str) -> None:
    policy = build_policy(generator(), FEATURES, ACTIONS["factored"], heads=heads)
    observation = torch.randn((50, 5), generator=generator(1))
    _, entropy = policy.log_prob_entropy(observation, policy.sample(observation, generator()))
    assert entropy.min() > 0.999 * (math.log(4) + math.log(3))


def test_under_lars_each_separate_head_has_a_step_length_of_its_own() -> None:
    """ACL's LARS by hand: q = eta |w| / (|g| + wd |w|), v <- 0.9 v + lr q (g + wd w), w <- w - v, tensor by tensor."""
    space = spaces.MultiDiscrete([13, 12, 5])
    heads = build_policy(
        generator(), FEATURES, space, hidden=(16,), uniform_start=False, heads="separate"
    ).head.double()
    optimizer = LARS(heads.parameters(), 0.1, weight_decay=1e-6)
    features = torch.randn((6, 16), generator=generator(1), dtype=torch.float64)
    chosen = torch.stack([torch.randint(n, (6,), generator=generator(2)) for n in (13, 12, 5)], 1)
    tensors = list(heads.parameters())
    assert [tuple(tensor.shape) for tensor in tensors[::2]] == [(13, 16), (12, 16), (5, 16)]
    velocities = [np.zeros(tuple(weight.shape)) for weight in tensors]
    for _ in range(4):
        optimizer.zero_grad()
        parts = zip(heads(features).split([13, 12, 5], 1), chosen.T, strict=True)
        sum(nn.functional.cross_entropy(logits, best, reduction="sum") for logits, best in parts).backward()
        expected, ratios = [], set()
        for i, weight in enumerate(tensors):
            w, g = weight.detach().numpy(), weight.grad.numpy()
            q = 1e-3 * np.linalg.norm(w) / (np.linalg.norm(g) + 1e-6 * np.linalg.norm(w))
            velocities[i] = 0.9 * velocities[i] + 0.1 * q * (g + 1e-6 * w)
            expected.append(w - velocities[i])
            ratios.add(q)
        optimizer.step()
        for weight, after in zip(tensors, expected, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), after, rtol=0, atol=1e-12)
        assert len(ratios) == len(tensors)


def test_one_head_is_the_same_either_way() -> None:
    joint, separate = (build_policy(generator(), FEATURES, ACTIONS["flat"], heads=heads) for heads in HEADS)
    assert all(torch.equal(a, b) for a, b in zip(joint.parameters(), separate.parameters(), strict=True))
    with pytest.raises(ValueError, match="kind of heads"):
        build_policy(generator(), FEATURES, ACTIONS["flat"], heads="three")


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (96, 96)])
def test_image_extractor_takes_any_size_and_treats_images_alone(size: tuple[int, int]) -> None:
    network = ImageExtractor(3)
    images = torch.rand((4, 3, *size), generator=generator())
    together = network(images)
    assert together.shape == (4, 128)
    torch.testing.assert_close(network(images[1:2]), together[1:2])


def test_images_are_scaled_to_the_unit_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build_policy(generator(), IMAGES, ACTIONS["flat"])
    seen: list[torch.Tensor] = []
    policy.extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    policy.sample(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8), generator())
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_batch_statistics_leave_the_running_ones_alone() -> None:
    policy = build_policy(generator(), IMAGES, ACTIONS["flat"], image_network="resnet18", width=4).eval()
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    evaluated = policy(images)
    running = {name: value.clone() for name, value in policy.named_buffers() if "running" in name}
    with batch_statistics(policy):
        by_batch = policy(images)
    assert not torch.allclose(by_batch, evaluated)
    assert not policy.training and torch.equal(policy(images), evaluated)
    assert all(torch.equal(value, policy.get_buffer(name)) for name, value in running.items())
    torch.testing.assert_close(policy.train()(images), by_batch)
    assert any(not torch.equal(value, policy.get_buffer(name)) for name, value in running.items())


@pytest.mark.parametrize(
    ("observation", "action", "complaint"),
    [
        (spaces.Discrete(3), ACTIONS["flat"], "observation space"),
        (spaces.Box(0, 1, (3, 8, 8), np.float32), ACTIONS["flat"], "observation space"),
        (spaces.Box(0, 255, (3, 7, 8), np.uint8), ACTIONS["flat"], "7 x 8"),
        (FEATURES, spaces.MultiBinary(3), "action space"),
        (FEATURES, spaces.Box(-1, 1, (2, 2), np.float32), "action space"),
    ],
)
def test_other_spaces_are_refused(observation: spaces.Space, action: spaces.Space, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StrategyPolicy(observation, action)
