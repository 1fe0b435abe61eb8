"""Agents by name, or custom ones by a dotted path."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gymnasium.spaces import Discrete

from astra_gym.agents.bandits import BANDITS, Bandit
from astra_gym.agents.base import Agent, as_torch_env
from astra_gym.agents.bisection import Bisection
from astra_gym.agents.controllers import CONTROLLERS, Controller
from astra_gym.agents.controls import FixedAgent, RandomAgent, ScheduleAgent
from astra_gym.agents.entries import BUDGET, AgentEntry, AgentRequest, BudgetRequest
from astra_gym.agents.external import FunctionAgent, resolve
from astra_gym.agents.policies import is_image
from astra_gym.agents.reinforce import REINFORCE, SETTINGS, ReinforceSettings
from astra_gym.agents.rules.accelerating import AcceleratingAgent
from astra_gym.agents.rules.base import RuleAgent
from astra_gym.agents.rules.customized import CustomizedAgent
from astra_gym.agents.rules.delayed import DelayedAgent, DelaySettings
from astra_gym.agents.rules.escalating import EscalatingAgent
from astra_gym.agents.rules.friendly import FriendlyAgent
from astra_gym.agents.sb3.agent import Sb3Agent
from astra_gym.agents.sb3.algorithms import kind_of_actions
from astra_gym.envs.api.action_sets import WIDE_SETS
from astra_gym.envs.api.protocol import ViewsEnv
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

# "reinforce" in an environment of many steps (gamma > 0): a rollout is long enough to hold an action's effect on the
# next few rewards, and short enough for dozens of updates in a few hundred plays; so few updates need large steps
MANY_STEPS: dict[str, Any] = {"n_steps": 5, "learning_rate": 3e-2}
# a convolutional network collapses at the learning rate that suits features
IMAGES: dict[str, Any] = {"learning_rate": 3e-3}


def _reinforce(ask: AgentRequest) -> Agent:
    chosen = SETTINGS["reinforce"]
    if ask.gamma > 0:
        chosen = replace(chosen, gamma=ask.gamma, **MANY_STEPS)
    if is_image(as_torch_env(ask.env).observation_space):
        chosen = replace(chosen, **IMAGES)
    return _reinforce_by(ask, chosen)


def _reinforce_by(ask: AgentRequest, settings: ReinforceSettings) -> Agent:
    return REINFORCE(
        ask.env,
        ask.settings(settings),
        planned_plays=ask.planned_plays,
        updates_warmup=ask.updates_warmup,
        precision=ask.precision,
        seed=ask.seed,
        device=ask.device,
    )


def _paper(ask: AgentRequest) -> Agent:
    return _reinforce_by(ask, SETTINGS["reinforce-paper"])


def _sb3(ask: AgentRequest) -> Sb3Agent:
    return Sb3Agent(
        ask.name,
        ask.env,
        planned_plays=ask.planned_plays,
        gamma=ask.gamma,
        seed=ask.seed,
        device=ask.device,
        overrides=ask.overrides,
    )


def _with_settings(found: type[Bandit | Controller | Bisection], ask: AgentRequest) -> Agent:
    return found(ask.env, ask.settings(found.settings_class()), **ask.shared)


def _function(ask: AgentRequest) -> Agent:
    return FunctionAgent(ask.env, ask.name, **ask.common)


def _random(ask: AgentRequest) -> Agent:
    return RandomAgent(ask.env, **ask.common)


def _fixed(ask: AgentRequest) -> Agent:
    common = ask.common
    if ask.fixed_action is None:
        raise ValueError(f"fixed_action is None: agent {shown(ask.name)} needs an element of the action space")
    return FixedAgent(ask.env, ask.fixed_action, **common)


def _schedule(ask: AgentRequest) -> Agent:
    common = ask.common
    return ScheduleAgent(ask.env, ask.listed, planned_plays=ask.planned_plays, **common)


def _scheduled(ask: BudgetRequest) -> list[ConstantBudget]:
    return [replace(ask.budget, epsilon=epsilon) for epsilon in ask.schedule]


def _delayed(ask: AgentRequest) -> Agent:
    settings = ask.settings(DelaySettings())
    return DelayedAgent(ask.env, ask.listed, settings, planned_plays=ask.planned_plays, **ask.shared)


def _rule(found: type[RuleAgent], ask: AgentRequest) -> Agent:
    settings = () if found.settings_class is None else (ask.settings(found.settings_class()),)
    return found(ask.env, ask.listed, *settings, **(ask.shared if settings else ask.common))


def _rule_entry(found: type[RuleAgent], summary: str, paper: str, usual: Mapping[str, Any] | None = None) -> AgentEntry:
    return AgentEntry(
        summary,
        partial(_rule, found),
        learns=False,
        reports=found.needs,
        takes=BUDGET,
        budgets=found.budgets,
        envs=("view",) if found.worlds is ViewsEnv else ("view", "batch"),
        usual=usual or {},
        paper=paper,
    )


def _none(ask: AgentRequest) -> Agent:
    common, space = ask.common, as_torch_env(ask.env).action_space
    if space != Discrete(1):
        raise ValueError(f"agent 'none' is the absence of an attack: the action space is {space}, not Discrete(1)")
    return FixedAgent(ask.env, 0, **common)


_FROM_SB3 = partial(AgentEntry, make=_sb3, vec_env=True)

AGENTS: dict[str, AgentEntry] = {
    "reinforce": AgentEntry(
        "REINFORCE with a reward per view, moving baseline, normalized advantage, entropy bonus",
        _reinforce,
        paper="Williams, Machine Learning 1992",
    ),
    "reinforce-paper": AgentEntry(
        "ASTrA's REINFORCE: one reward for the batch, no baseline, every tenth step, three heads, ResNet-18, LARS",
        _paper,
        observation="image",
        reward_scope="batch",
        fixes=("reward_scope", "actions", "observation"),
        paper="ASTrA, ICLR 2025",
    ),
    "ppo": _FROM_SB3("Stable-Baselines3's PPO", paper="Schulman et al., 2017"),
    "a2c": _FROM_SB3("Stable-Baselines3's A2C", paper="Mnih et al., ICML 2016"),
    "trpo": _FROM_SB3("sb3-contrib's TRPO", paper="Schulman et al., ICML 2015"),
    "dqn": _FROM_SB3("Stable-Baselines3's DQN", actions="flat", paper="Mnih et al., Nature 2015"),
    "qrdqn": _FROM_SB3("sb3-contrib's QR-DQN", actions="flat", paper="Dabney et al., AAAI 2018"),
    "sac": _FROM_SB3("Stable-Baselines3's SAC", actions="continuous", paper="Haarnoja et al., ICML 2018"),
    "td3": _FROM_SB3("Stable-Baselines3's TD3", actions="continuous", paper="Fujimoto et al., ICML 2018"),
    "ddpg": _FROM_SB3("Stable-Baselines3's DDPG", actions="continuous", paper="Lillicrap et al., ICLR 2016"),
    "tqc": _FROM_SB3("sb3-contrib's TQC", actions="continuous", paper="Kuznetsov et al., ICML 2020"),
    "crossq": _FROM_SB3("sb3-contrib's CrossQ", actions="continuous", paper="Bhatt et al., ICLR 2024"),
    "bandit": AgentEntry(
        "Exp3.S: the best constant action, whatever the observation",
        partial(_with_settings, BANDITS["bandit"]),
        paper="Auer et al., SIAM J. Computing 2002",
    ),
    "lints": AgentEntry(
        "balanced linear Thompson sampling: a linear model of the reward for each choice of each head",
        partial(_with_settings, BANDITS["lints"]),
        paper="Dimakopoulou et al., AAAI 2019",
    ),
    "gp": AgentEntry(
        "a Gaussian process over actions and time, for rewards that come once in many updates",
        partial(_with_settings, CONTROLLERS["gp"]),
        paper="after Bogunovic et al., AISTATS 2016",
    ),
    "elimination": AgentEntry(
        "successive halving of random actions within the run, for such rewards",
        partial(_with_settings, CONTROLLERS["elimination"]),
        paper="Karnin et al., ICML 2013",
    ),
    "bisection": AgentEntry(
        "uniform draws from ranges that are halved within the run, then their middle, for such rewards",
        partial(_with_settings, Bisection),
    ),
    "switching": AgentEntry(
        "the present action against a random neighbor in turn, for such rewards",
        partial(_with_settings, CONTROLLERS["switching"]),
        paper="after Jaderberg et al., 2017",
    ),
    "fixed": AgentEntry("always the same attack", _fixed, learns=False, takes=BUDGET, budget=lambda ask: ask.budget),
    "fixed-max": AgentEntry(
        "always the hardest attack of the ranges", _fixed, learns=False, budget=lambda ask: ask.sets.hardest
    ),
    "schedule": AgentEntry(
        "fixed attacks in turn, each for an equal part of the run",
        _schedule,
        learns=False,
        takes=("schedule", "step_size", "steps"),
        budgets=_scheduled,
    ),
    "delayed": AgentEntry(
        "no attack for a share of the run, then always the same",
        _delayed,
        learns=False,
        takes=BUDGET,
        budgets=DelayedAgent.budgets,
        paper="Gupta et al., 2020 (2002.04237), with a given switch",
    ),
    "accelerating": _rule_entry(
        AcceleratingAgent,
        "two steps at first; more once the summed gradient of an epoch's attacks has grown",
        "Wang et al., 2021 (2103.03076), without labels",
    ),
    "escalating": _rule_entry(
        EscalatingAgent,
        "one wide step at first; more and smaller ones once attacks gain little",
        "after Li et al., 2020 (2006.03089), without labels",
        # ASTrA's sets have no wide step
        usual=WIDE_SETS.by_setting,
    ),
    "customized": _rule_entry(
        CustomizedAgent,
        "a radius for each image, raised while its attacked view is still retrieved",
        "Cheng et al., 2020 (2002.06789), without labels",
    ),
    "friendly": _rule_entry(
        FriendlyAgent,
        "always the same attack, which stops at each view that is no longer retrieved",
        "Zhang et al., ICML 2020 (2002.11242), without labels",
        usual={"attack_stop": "retrieval"},
    ),
    "random": AgentEntry("uniform over the action space", _random, learns=False),
    "none": AgentEntry(
        "no attack: for methods without one, whose environment has a single action", _none, learns=False
    ),
}


def describe(name: str) -> AgentEntry:
    """Return the entry of a name of `AGENTS`, or one made for a dotted path.

    Raises:
        ValueError: if the name is unknown, or there is no agent at the path.
    """
    if not is_dotted(name):
        return pick(name, AGENTS, "agent")
    found = resolve(name)
    if isinstance(found, type):
        return _FROM_SB3(f"{found.__name__}, a custom one", actions=kind_of_actions(found))
    return AgentEntry("a custom function", _function, learns=False)


def learns(name: str) -> bool:
    """Return whether the agent has anything to learn; a custom one counts as learning, and its module is not imported.

    Raises:
        ValueError: if the name is unknown.
    """
    return is_dotted(name) or pick(name, AGENTS, "agent").learns


def make_agent(
    name: str,
    env: Any,
    *,
    seed: int,
    device: torch.device | str = "auto",
    gamma: float,
    planned_plays: int,
    fixed_action: Any = None,
    schedule_actions: Sequence[Any] | None = None,
    updates_warmup: int = 0,
    precision: str = "fp32",
    overrides: Mapping[str, Any] | None = None,
) -> Agent | Sb3Agent:
    """Make the agent called `name`; all agents learn, predict, save, load and keep their state alike.

    Args:
        name: a name of `AGENTS`; or the dotted path, `my_module:MyAgent`, of a subclass of Stable-Baselines3's
            `BaseAlgorithm` (see `astra_gym.agents.sb3.algorithms.make_sb3`) or of a function (see `FunctionAgent`).
        env: a `TorchVectorEnv`, Stable-Baselines3 `VecEnv`, Gymnasium `VectorEnv` or `Env`; for Stable-Baselines3's
            agents a `VecEnv` or `Env`.
        seed: seed of the agent's own streams; for Stable-Baselines3's agents, of the *global* generators.
        device: device of the agent.
        gamma: discount: 0 where each step ends its episode. "reinforce-paper" learns from single steps and has
            none.
        planned_plays: plays of the whole run.
        fixed_action: the action of "fixed" and "fixed-max", an element of the action space.
        schedule_actions: the actions of "schedule", one for each equal part of `planned_plays`; of "delayed", no attack
            and the attack; of "accelerating" and "escalating", from few steps to many; of "customized", from small to
            large radii; of "friendly", one.
        updates_warmup: warm-up of "reinforce-paper", in updates.
        precision: of the network of "reinforce-paper" on a GPU, `fp32` or `bf16`.
        overrides: other settings: fields of `ReinforceSettings`, `BanditSettings`, `LinearSettings`, `DelaySettings`,
            `AccelerationSettings`, `EscalationSettings`, `CustomizationSettings` or a controller's settings, or what
            `astra_gym.agents.sb3.algorithms.make_sb3` takes;
            the other controls have none.

    Raises:
        ValueError: if the name or a setting is unknown, a setting is of another type or out of its range, or the
            environment does not fit.
    """
    ask = AgentRequest(
        name=name,
        env=env,
        seed=seed,
        device=device,
        gamma=gamma,
        planned_plays=planned_plays,
        fixed_action=fixed_action,
        schedule_actions=schedule_actions,
        updates_warmup=updates_warmup,
        precision=precision,
        overrides=dict(overrides or {}),
    )
    return describe(name).make(ask)
