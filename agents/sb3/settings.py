"""Settings of Stable-Baselines3's algorithms for few updates of a target network: a table, and values from the plan.

Their own defaults are meant for a million steps of one environment. Here a run is 200 to 3,000 plays. `VIEWS` is for
128 to 1,024 sub-environments with episodes of one step, so that a play gives hundreds of independent samples. `BATCH`
is for one sub-environment, whose play gives one sample. Rates are far above the defaults, and rollouts short.

Each entry holds arguments of the algorithm's constructor, and these, which depend on the environment or the plan:

| setting | meaning |
|---|---|
| `rollout` | (preferred, least, most) plays in a rollout; the nearest divisor of the planned plays is taken |
| `largest_batch` | on-policy: the batch is the largest divisor of a rollout's samples up to this |
| `warm_up` | off-policy: uniformly random plays before learning, `learning_starts` in plays; at most half of the plan |
| `target_plays` | DQN, QR-DQN: `target_update_interval` in plays |
| `action_noise_std` | TD3, DDPG: standard deviation of the Gaussian noise on actions in [-1, 1] |
| `image_learning_rate` | `learning_rate` on images: a convolutional network collapses at rates that suit features |

A replay buffer holds all transitions of the plan or `REPLAY_BYTES`, whichever is less. DQN and QR-DQN, as in
Stable-Baselines3, explore in all sub-environments of a play or in none.

Left out: **MaskablePPO**, since no action is ever invalid and a mask would mask nothing; **RecurrentPPO**, since the
batch environment's observation (statistics of the coming batch's features, progress, clean loss) leaves an LSTM little
to remember, and a few hundred samples are too few to learn from. On the tests' problem of known optimum (one
sub-environment, episodes of 20 plays, gamma 0.9, the same rates) the mean reward of plays 301 to 400 was 0.656 and
0.649 with PPO and 0.578 and 0.636 with RecurrentPPO (seeds 0 and 1; the first hundred: 0.59 to 0.63), at four times the
cost. It is available by its dotted path, `sb3_contrib:RecurrentPPO`.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from astra_gym.agents.policies import is_image
from astra_gym.ssl_core.utils.messages import shown

VECTOR_ENVS = 16
"""Least number of sub-environments for `VIEWS`; with fewer, `BATCH` is used."""
REPLAY_BYTES = 2**30
OURS: dict[str, Any] = {
    "rollout": tuple[int, int, int] | None,
    "largest_batch": int | None,
    "warm_up": int | None,
    "target_plays": int | None,
    "action_noise_std": float | None,
    "image_learning_rate": float | None,
}
"""The names above that are not arguments of a constructor, and their types; None leaves them out."""
POSITIVE = {
    *("rollout", "largest_batch", "target_plays", "image_learning_rate"),
    *("n_steps", "n_epochs", "batch_size", "buffer_size", "train_freq", "target_update_interval", "policy_delay"),
}
NOT_NEGATIVE = {"warm_up", "action_noise_std", "learning_starts"}
"""Settings for which Stable-Baselines3 would find a bad value only in the middle of a run, or never."""
TRANSITION_BYTES = 3 * 4
"""Bytes of a transition's reward, end and time-out, without its two observations and its action."""

_ACTOR_CRITIC = {"pi": [64, 64], "vf": [64, 64]}
_ACTOR_Q = {"pi": [64, 64], "qf": [128, 128]}
_REPLAY = {"warm_up": 4, "train_freq": 1, "batch_size": 256, "learning_rate": 3e-3}
_Q = _REPLAY | {"target_plays": 5, "exploration_fraction": 0.6, "exploration_final_eps": 0.05}
_SOFT = _REPLAY | {"gradient_steps": 2, "ent_coef": "auto_0.05"}
# a deterministic actor saturates at the rate that suits the others, and then never leaves the bounds of the box
_DETERMINISTIC = _REPLAY | {"gradient_steps": 4, "learning_rate": 1e-3, "tau": 0.02, "action_noise_std": 0.5}

VIEWS: dict[str, dict[str, Any]] = {
    # advantages are normalized because the rewards' scale is not known beforehand; gae_lambda is low, so that they
    # depend little on later values, because the value network is hardly trained throughout
    "ppo": {
        "rollout": (1, 1, 1),
        "largest_batch": 128,
        "learning_rate": 2e-3,
        "n_epochs": 5,
        "clip_range": 0.2,
        "gae_lambda": 0.5,
        "ent_coef": 0.005,
        "max_grad_norm": 1.0,
        "policy_kwargs": {"net_arch": _ACTOR_CRITIC},
    },
    "a2c": {
        "rollout": (1, 1, 1),
        "learning_rate": 1e-2,
        "image_learning_rate": 3e-3,
        "use_rms_prop": False,
        "gae_lambda": 0.95,
        "ent_coef": 0.005,
        "max_grad_norm": 1.0,
        "policy_kwargs": {"net_arch": _ACTOR_CRITIC},
    },
    "trpo": {
        "rollout": (1, 1, 1),
        "largest_batch": 256,
        "learning_rate": 5e-3,
        "target_kl": 0.05,
        "cg_max_steps": 5,
        "n_critic_updates": 3,
        "gae_lambda": 0.95,
        "policy_kwargs": {"net_arch": _ACTOR_CRITIC},
    },
    "dqn": _Q | {"gradient_steps": 4, "policy_kwargs": {"net_arch": [128, 128]}},
    "qrdqn": _Q
    | {"gradient_steps": 3, "max_grad_norm": 10.0, "policy_kwargs": {"net_arch": [128, 128], "n_quantiles": 10}},
    "sac": _SOFT | {"tau": 0.02, "policy_kwargs": {"net_arch": _ACTOR_Q}},
    "td3": _DETERMINISTIC | {"policy_kwargs": {"net_arch": _ACTOR_Q}},
    "ddpg": _DETERMINISTIC | {"policy_kwargs": {"net_arch": _ACTOR_Q}},
    "tqc": _SOFT | {"tau": 0.02, "policy_kwargs": {"net_arch": _ACTOR_Q, "n_quantiles": 10}},
    "crossq": _SOFT | {"policy_delay": 2, "policy_kwargs": {"net_arch": _ACTOR_Q, "batch_norm_momentum": 0.05}},
}

# with one sample per play, actor-critics need longer rollouts and more passes; learning from a replay buffer starts as
# soon as it holds a few batches
_FEW = {"warm_up": 16, "batch_size": 64, "gradient_steps": 4}
BATCH: dict[str, dict[str, Any]] = {
    "ppo": VIEWS["ppo"] | {"rollout": (10, 4, 32), "learning_rate": 5e-3, "n_epochs": 10},
    "a2c": VIEWS["a2c"] | {"rollout": (5, 4, 16)},
    "trpo": VIEWS["trpo"] | {"rollout": (10, 4, 32)},
    **{name: entry | _FEW for name, entry in VIEWS.items() if "warm_up" in entry},
}
# a custom class keeps its own rates
VIEWS["on-policy"] = {"rollout": (1, 1, 1), "largest_batch": 128}
VIEWS["off-policy"] = {"warm_up": 4, "train_freq": 1}
BATCH["on-policy"] = {"rollout": (10, 4, 32), "largest_batch": 128}
BATCH["off-policy"] = {"warm_up": 16, "train_freq": 1}


def check_range(agent: str, name: str, value: Any) -> None:
    """Raise a ValueError, naming agent and setting, for a value with which no run could be made.

    The value's type has been checked before. In a list, each number is checked.
    """
    holds = {
        "a positive number": lambda figure: name not in POSITIVE or figure > 0,
        "0 or more": lambda figure: name not in NOT_NEGATIVE or figure >= 0,
        "a discount in [0, 1]": lambda figure: name != "gamma" or 0 <= figure <= 1,
    }
    for figure in value if isinstance(value, list | tuple) else [value]:
        for expected, check in holds.items():
            if isinstance(figure, int | float) and not check(figure):
                raise ValueError(f"{name} of the agent {shown(agent)} is {shown(value)}: expected {expected}")


def rollout_length(planned_plays: int, preferred: int, low: int, high: int) -> int:
    """Return the divisor of the planned plays in [low, high] nearest to `preferred`, so that rollouts fill the plan.

    If there is none (the plan is prime), return `preferred`, at most the plan; the guard in `Sb3Agent.learn` then ends
    the last rollout early.
    """
    divisors = [n for n in range(low, min(high, planned_plays) + 1) if planned_plays % n == 0]
    return min(divisors, key=lambda n: (abs(n - preferred), n)) if divisors else min(preferred, planned_plays)


def replay_size(env: VecEnv, planned_plays: int) -> int:
    """Return a replay buffer's transitions: the plan's, or as many whole plays as fit `REPLAY_BYTES`, at least one."""
    shape, dtype = env.observation_space.shape or (), env.observation_space.dtype
    action = np.prod(env.action_space.shape or (1,)) * np.dtype(env.action_space.dtype).itemsize
    transition = 2 * int(np.prod(shape)) * np.dtype(dtype).itemsize + int(action) + TRANSITION_BYTES
    return env.num_envs * max(1, min(planned_plays, REPLAY_BYTES // (env.num_envs * transition)))


def table_for(kind: str, env: VecEnv) -> dict[str, Any]:
    """Return the entry of `VIEWS` or `BATCH` for an algorithm, "on-policy" or "off-policy" in this environment."""
    return dict((VIEWS if env.num_envs >= VECTOR_ENVS else BATCH)[kind])


def arguments_from(settings: dict[str, Any], env: VecEnv, planned_plays: int, gamma: float) -> dict[str, Any]:
    """Make constructor arguments from an entry of the table with overrides, and compute all that depends on the plan.

    Args:
        settings: names of the table and of the constructor; the latter are passed on unchanged.
        env: the vector environment.
        planned_plays: plays of the whole run.
        gamma: discount.
    """
    chosen = {"gamma": gamma, **settings}
    if isinstance(chosen.get("train_freq"), list):
        # YAML has no tuples
        chosen["train_freq"] = tuple(chosen["train_freq"])
    image_rate = chosen.pop("image_learning_rate", None)
    if image_rate is not None and is_image(env.observation_space):
        chosen["learning_rate"] = image_rate
    rollout = chosen.pop("rollout", None)
    if rollout is not None:
        samples = chosen.setdefault("n_steps", rollout_length(planned_plays, *rollout)) * env.num_envs
        chosen.setdefault("normalize_advantage", samples > 1)
        largest = chosen.pop("largest_batch", None)
        if largest is not None:
            batch = max(n for n in range(1, min(samples, largest) + 1) if samples % n == 0)
            chosen.setdefault("batch_size", batch if batch > 1 else samples)
    warm_up = chosen.pop("warm_up", None)
    if warm_up is not None:
        chosen.setdefault("learning_starts", min(warm_up, planned_plays // 2) * env.num_envs)
        chosen.setdefault("buffer_size", replay_size(env, planned_plays))
    target_plays = chosen.pop("target_plays", None)
    if target_plays is not None:
        chosen.setdefault("target_update_interval", target_plays * env.num_envs)
    noise = chosen.pop("action_noise_std", None)
    if noise is not None:
        size = env.action_space.shape or ()
        chosen.setdefault("action_noise", NormalActionNoise(np.zeros(size), np.full(size, noise)))
    return chosen
