"""Whether PPO learns when to stop each view's attack: `ASTrA/AttackStep-v0` against divisions of the steps by rule."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.agents.sb3.agent import Sb3Agent
from astra_gym.envs.attack_step_env import AttackStepVectorEnv, attack_observation
from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.headroom.verdicts import Verdict, decide, mean_and_ends
from astra_gym.experiments.headroom.within_attack import MEAN_STEPS, UNIT, by_gradient, gradient_norms
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.ssl_core.attacks.pgd import Attacked
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import derive_seed

HORIZON = 14
"""Most steps of a view."""
PLAYS = 3360
"""Steps of the environment, all views together, that PPO learns from, at most; in a small world those of two runs."""
ROLLOUT = 2 * HORIZON
PPO = {"n_steps": ROLLOUT, "largest_batch": 512, "n_epochs": 5, "learning_rate": 1e-3, "gae_lambda": 0.95}
PRICE, RATE = 0.1, 0.05
"""The price of a step at first, and how fast it follows the steps taken."""
NAMES = {"ppo": "PPO", "uniform": "uniform", "rule": "gradient norm"}
STREAM = "headroom/stops"
NO_RANGES = dict.fromkeys(("action_epsilons", "action_steps", "action_step_sizes"))
"""The environment has its own actions."""


class Attacks:
    """Attacks on a world's views with the constant's radius and step size.

    Args:
        world: the world.
        engine: the network, which does not change here.
        agent: the agent that stops views.
    """

    def __init__(self, world: HeadroomWorld, engine: AttackEngine, agent: Sb3Agent) -> None:
        self.constant, self.engine, self.agent = world.constant, engine, agent

    def going(self, attack: StepwiseAttack, clean: Tensor, price: float) -> Tensor:
        """Return the probability (n,) with which the agent takes one more step."""
        about = {"epsilon": self.constant.epsilon, "price": price, "progress": self.engine.progress}
        seen = attack_observation(attack, clean, horizon=HORIZON, **about)
        with torch.no_grad():
            found: Any = self.agent.policy.get_distribution(seen)  # type: ignore[operator]
        return found.distribution.probs[:, 1]

    def begin(self, views: Tensor) -> tuple[StepwiseAttack, Tensor, Tensor]:
        """Begin an attack; with it come the loss of the clean views and the step sizes, (n,) each."""
        learner = self.engine.learner
        objective = learner.objective(views)
        clean = objective(learner.encode_clean(views).embeddings).detach()
        radii, sizes = (torch.full((len(clean),), getattr(self.constant, name)) for name in ("epsilon", "step_size"))
        return learner.stepwise(views, radii, self.engine.streams.on_device(STREAM), objective), clean, sizes

    def cut(self, price: float, batches: int) -> float:
        """Return the probability above which views have to go on so that they take `MEAN_STEPS` on average, from
        batches of the images that are trained on, in which every view takes all steps."""
        lowest = []
        for _ in range(batches):
            attack, clean, sizes = self.begin(self.engine.all_views)
            low = torch.ones(len(clean))
            for _ in range(HORIZON):
                # a view has stopped for good at the first step that it does not take
                low = torch.minimum(low, self.going(attack, clean, price))
                lowest.append(low)
                attack.advance(sizes, torch.ones(len(clean), dtype=torch.bool))
            self.engine.draw_batch()
        return float(torch.cat(lowest).quantile(1 - MEAN_STEPS / HORIZON))

    def stopped(self, views: Tensor, price: float, cut: float) -> StepwiseAttack:
        """Attack views, each until the agent's probability of a step is at most `cut`."""
        attack, clean, sizes = self.begin(views)
        for _ in range(HORIZON):
            moving = (self.going(attack, clean, price) > cut) & ~attack.stopped
            if not bool(moving.any()):
                break
            attack.advance(sizes, moving)
        return attack

    def divided(self, views: Tensor, steps: Tensor) -> Attacked:
        """Attack views with so many steps each, (n,)."""
        budget = replace(self.constant.expand(len(steps)), steps=steps)
        return self.engine.learner.attack(views, budget, self.engine.streams.on_device(STREAM))


def even(n: int, total: int) -> Tensor:
    """Divide steps evenly among n views, which have no order; the first get those that are left over."""
    return total // n + (torch.arange(n) < total % n).long()


def measure(world: HeadroomWorld, seed: int) -> dict[str, Any]:
    """Let PPO learn in `AttackStep-v0`, and attack views of held-out images on a network that it has not seen.

    PPO learns while networks train on what its attacks make, run after run. The price of a step rises while attacks
    take more than `MEAN_STEPS` on average, and falls while they take fewer. The network that is attacked then is
    partly trained under the constant, as for the other kinds. The other divisions have as many steps in a batch as PPO
    has taken there, and the same random start.

    Returns:
        Of each batch the mean steps, the mean attained loss (`losses`) and the processor's seconds (`seconds`, from the
        views to the attacked views) by division, and the standard deviation over views of the uniform attack's gain
        (`spread`); what PPO took to learn: `plays`, `price` at its end, `learning_seconds`.
    """
    data, began = world.divided(seed), time.process_time()
    agent, price, plays = _learned(world, data, seed)
    learning = time.process_time() - began
    engine, judges = world.started(seed, **NO_RANGES)
    attacks, images = Attacks(world, engine, agent), torch.cat(judges)
    cut = attacks.cut(price, world.batches)
    found = []
    for _ in range(world.batches):
        rows = torch.randperm(len(images), generator=engine.streams[STREAM])
        rows = rows[: world.settings.optimizer.batch_size]
        views = engine.make_views(as_float(images[rows]), engine.streams[STREAM])
        found.append(_batch(attacks, views, price, cut))
    return {"batches": found, "plays": plays, "price": price, "learning_seconds": round(learning, 1)}


def _learned(world: HeadroomWorld, data: Split, seed: int) -> tuple[Sb3Agent, float, int]:
    """Return PPO after learning, the price at the end, and the number of plays."""
    constant, settings = world.constant, world.settings.world.replace(**NO_RANGES)
    engine = AttackEngine(settings, derive_seed(seed, STREAM), "cpu", data)
    env = AttackStepVectorEnv(
        engine=engine, epsilon=constant.epsilon, step_sizes=(constant.step_size,), price=PRICE, horizon=HORIZON
    )
    plays = min(PLAYS, ROLLOUT * engine.planned_updates)
    agent = Sb3Agent("ppo", env, planned_plays=plays, gamma=1.0, seed=seed, overrides=PPO)

    def follow(now: Mapping[str, Any], _: Any) -> bool:
        if now["dones"].all():
            steps = np.mean([info["budget/steps"] for info in now["infos"]])
            env.price *= math.exp(RATE * (steps - MEAN_STEPS))
        return True

    agent.learn(plays * env.num_envs, follow)
    return agent, env.price, plays


def _batch(attacks: Attacks, views: Tensor, price: float, cut: float) -> dict[str, Any]:
    engine = attacks.engine
    learner, noise = engine.learner, engine.streams.on_device(STREAM)
    objective, start = learner.objective(views), noise.get_state()
    seconds: dict[str, float] = {}

    def timed(name: str, made: Callable[[], Any]) -> Any:
        noise.set_state(start)
        began = time.process_time()
        result = made()
        seconds[name] = time.process_time() - began
        return result

    attack = timed("ppo", lambda: attacks.stopped(views, price, cut))
    n, total = len(attack.steps), int(attack.steps.sum())
    uniform = timed("uniform", lambda: attacks.divided(views, even(n, total)))
    rule = timed("rule", lambda: attacks.divided(views, by_gradient(gradient_norms(learner, views), HORIZON, total)))
    losses = {name: objective(made.embeddings) for name, made in (("uniform", uniform), ("rule", rule))}
    clean = objective(learner.encode_clean(views).embeddings)
    return {
        "steps": total / n,
        "clean": float(clean.mean()),
        "losses": {"ppo": float(attack.values.mean())} | {name: float(each.mean()) for name, each in losses.items()},
        "seconds": {name: round(each, 5) for name, each in seconds.items()},
        "spread": float((losses["uniform"] - clean).std()),
    }


def conclude(world: HeadroomWorld, repeats: Mapping[int, Any]) -> tuple[list[Verdict], dict[str, Any]]:
    """Return the verdicts over the repeats, that of PPO against the uniform division first, and by division the mean
    attained loss with its 95 % interval and the seconds a batch."""
    found = [repeats[seed] for seed in sorted(repeats)]
    losses = {
        name: [float(np.mean([batch["losses"][name] for batch in each["batches"]])) for each in found] for name in NAMES
    }
    batches = [batch for each in found for batch in each["batches"]]
    spread = float(np.mean([batch["spread"] for batch in batches]))
    verdicts = [
        decide(
            f"stops of views, {NAMES[one]} - {NAMES[other]}",
            [a - b for a, b in zip(losses[one], losses[other], strict=True)],
            UNIT,
            spread,
        )
        for one, other in (("ppo", "uniform"), ("ppo", "rule"), ("rule", "uniform"))
    ]
    return verdicts, {
        "losses": {name: mean_and_ends(values) for name, values in losses.items()},
        "clean": float(np.mean([batch["clean"] for batch in batches])),
        "steps": float(np.mean([batch["steps"] for batch in batches])),
        "seconds": {name: float(np.mean([batch["seconds"][name] for batch in batches])) for name in NAMES},
        "learning_seconds": float(np.mean([each["learning_seconds"] for each in found])),
        "spread": spread,
    }
