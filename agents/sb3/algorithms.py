"""Stable-Baselines3's algorithms, with settings for few updates, and custom ones."""

import inspect
import random
from collections.abc import Mapping
from typing import Any, Optional

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from astra_gym.agents.base import silent_logger
from astra_gym.agents.external import own_algorithm
from astra_gym.agents.policies import Sb3ImageExtractor, is_image
from astra_gym.agents.sb3.settings import OURS, arguments_from, check_range, table_for
from astra_gym.agents.sb3.state import check_resumable
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import check_type
from astra_gym.ssl_core.utils.registry import pick, unknown

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "a2c": A2C,
    "trpo": TRPO,
    "dqn": DQN,
    "qrdqn": QRDQN,
    "sac": SAC,
    "td3": TD3,
    "ddpg": DDPG,
    "tqc": TQC,
    "crossq": CrossQ,
}
NOT_SETTINGS = {
    "policy": "it follows from the observation",
    "env": "the agent is made for one",
    "seed": "it is that of the run",
    "device": "it is that of the run",
    "tensorboard_log": "figures go to the logger of the run",
    "verbose": "figures go to the logger of the run",
    "_init_setup_model": "a model without networks cannot be trained",
}
"""Arguments of the constructors that are not settings, and why."""


def seed_globals(seed: int, action_space: gymnasium.Space | None = None) -> None:
    """Seed what Stable-Baselines3 draws from: Python's, NumPy's and torch's global generators and the action space's.

    Called once, at the start of a run; a resume restores the states instead.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if action_space is not None:
        action_space.seed(seed)


def algorithm_called(name: str) -> type[BaseAlgorithm]:
    """Return the class of a name of `ALGORITHMS` or of a dotted path.

    Raises:
        ValueError: if there is no such class.
    """
    return own_algorithm(name) if is_dotted(name) else pick(name, ALGORITHMS, "Stable-Baselines3 agent")


def kind_of_actions(algorithm: type[BaseAlgorithm]) -> str:
    """Return the kind of actions an algorithm is for: "flat" for DQN and QR-DQN, "continuous" for others off-policy."""
    if issubclass(algorithm, DQN | QRDQN):
        return "flat"
    return "continuous" if issubclass(algorithm, OffPolicyAlgorithm) else "factored"


def _parameters(algorithm: type) -> dict[str, Any]:
    """Return the constructor's arguments and their types, `Any` if there is no annotation.

    The parents' arguments are included, as far as `**kwargs` passes them on.
    """
    kinds: dict[str, Any] = {}
    for each in algorithm.__mro__:
        if "__init__" not in vars(each):
            continue
        constructor = vars(each)["__init__"]
        given = inspect.signature(constructor).parameters.values()
        try:
            hints = inspect.get_annotations(constructor, eval_str=True)
        except Exception:
            # custom annotations may be names that only a type checker knows
            hints = inspect.get_annotations(constructor)
        for one in given:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                kind = hints.get(one.name, Any)
                kinds.setdefault(one.name, Optional[kind] if one.default is None else kind)  # noqa: UP045
        if not any(one.kind is one.VAR_KEYWORD for one in given):
            break
    return {name: kind for name, kind in kinds.items() if name not in {"self", *NOT_SETTINGS}}


def _check_settings(name: str, overrides: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise a ValueError of one line if a setting is unknown, of another type, or out of its range."""
    for key, value in overrides.items():
        if key in NOT_SETTINGS:
            raise ValueError(f"{key} is no setting of {shown(name)}: {NOT_SETTINGS[key]}")
        if key not in kinds:
            raise unknown(key, sorted(kinds), f"setting of {shown(name)}")
        check_type(f"the agent {shown(name)}", key, value, kinds[key])
        check_range(name, key, value)


def make_sb3(
    name: str,
    env: VecEnv,
    *,
    planned_plays: int,
    gamma: float,
    seed: int | None,
    device: torch.device | str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> BaseAlgorithm:
    """Make an algorithm with settings for a run of `planned_plays` plays.

    Learning from feature observations is always on the CPU, since they come as NumPy arrays and Stable-Baselines3
    itself advises against a GPU for them.

    Args:
        name: a name of `ALGORITHMS`, or the dotted path of a custom class. Its constructor gets `gamma`, and `n_steps`
            and `batch_size` or `learning_starts`, `buffer_size` and `train_freq`: as many of these as it takes.
        env: the vector environment.
        planned_plays: plays of the whole run.
        gamma: discount: 0 where each step ends its episode; `overrides` may have another.
        seed: seed of the *global* generators, see `seed_globals`; None leaves them, for a model whose state is loaded
            next. The environment is never seeded here.
        device: device for image observations.
        overrides: arguments of the algorithm's constructor, or names of `astra_gym.agents.sb3.settings`;
            `policy_kwargs` are added to ours.

    Raises:
        ValueError: if the name or a setting is unknown, or a setting is of another type or out of its range; if the
            environment is not a `VecEnv`, or its actions do not suit the algorithm; if the plan is not positive, the
            constructor fails, or the model could not keep to the plan or be resumed exactly.
    """
    algorithm = algorithm_called(name)
    if issubclass(algorithm, ARS):
        raise ValueError(
            f"{name} cannot keep to the planned plays: ARS plays whole episodes for each candidate, whatever it is told"
        )
    if not isinstance(env, VecEnv):
        raise ValueError(f"env is a {type(env).__name__}: {name} needs a Stable-Baselines3 VecEnv")
    check_number("planned_plays", planned_plays, 1, expected="a positive number", whole=True)
    if seed is not None:
        seed_globals(seed, env.action_space)
    image = is_image(env.observation_space)
    parameters = _parameters(algorithm)
    off_policy = issubclass(algorithm, OffPolicyAlgorithm)
    settings = table_for(name if name in ALGORITHMS else "off-policy" if off_policy else "on-policy", env)
    overrides = overrides or {}
    _check_settings(name, overrides, parameters | {key: OURS[key] for key in settings if key in OURS})
    policy = {**settings.get("policy_kwargs", {}), **(overrides.get("policy_kwargs") or {})}
    if name in ALGORITHMS and not off_policy and isinstance(env.action_space, spaces.Box):
        policy.setdefault("log_std_init", -0.5)
    if image:
        policy.setdefault("features_extractor_class", Sb3ImageExtractor)
    chosen = arguments_from({**settings, **overrides, "policy_kwargs": policy}, env, planned_plays, gamma)
    arguments = {key: value for key, value in chosen.items() if key in parameters}
    try:
        model = algorithm(_policy(algorithm, image), env, device=device if image else "cpu", **arguments)
    except (Exception, SystemExit) as error:
        # Stable-Baselines3 asserts the kind of action space; a custom class may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{name} cannot be made: {reason}") from error
    if env.num_envs > 1 and getattr(getattr(model, "train_freq", None), "unit", None) is TrainFrequencyUnit.EPISODE:
        raise ValueError(
            f"train_freq of the agent {shown(name)} is in episodes, of which {env.num_envs} run at once: take plays"
        )
    check_resumable(model)
    model.set_logger(silent_logger())
    return model


def _policy(algorithm: type[BaseAlgorithm], image: bool) -> str:
    """Return the policy's alias. The alias for images changes only the default extractor and a warning on a GPU."""
    wanted = ("Cnn", "Mlp") if image else ("Mlp",)
    found = [alias for start in wanted for alias in algorithm.policy_aliases if alias.startswith(start)]
    return found[0] if found else "MlpPolicy"
