"""`ASTrA/AttackStep-v0`: the attack on a batch is the episode, and every view chooses step by step when to stop."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.envs.actions import RangesSection, members
from astra_gym.envs.api.spaces import meaning
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rendering.attack_renderer import AttackRenderer
from astra_gym.envs.rendering.drawing import DRAWN
from astra_gym.envs.run_sequence import RunSequence, world_of
from astra_gym.envs.torch_env import as_actions, step_info
from astra_gym.envs.vector_base import ViewsVectorEnv
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack
from astra_gym.ssl_core.training.non_finite import NonFiniteLossError
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown

BOUND = 10.0
OBSERVED = ("gain", "gradient norm", "agreement", "distance", "steps left", "price", "clean loss", "progress")
"""The entries of a view's observation."""


def attack_observation(
    attack: StepwiseAttack, clean: Tensor, *, epsilon: float, horizon: int, price: float, progress: float
) -> Tensor:
    """Return what is seen of each view of an attack, (n, 8) float32 on the host, see `AttackStepVectorEnv`.

    Args:
        attack: the attack.
        clean: (n,) loss of the clean views.
        epsilon: radius of all balls.
        horizon: most steps of the attack.
        price: price of a step.
        progress: share of the training that is done, in [0, 1].

    Raises:
        NonFiniteLossError: if a value is not finite.
    """
    left = (1 - attack.steps / horizon).where(~attack.stopped, 0.0)
    seen = torch.stack(
        [
            attack.values - clean,
            attack.gradient.abs().sum(dim=(1, 2, 3)).clamp(min=10**-BOUND).log10(),
            attack.agreement,
            (attack.moved - attack.images).abs().mean(dim=(1, 2, 3)) / epsilon,
            left.to(clean.device),
            torch.full_like(clean, price),
            clean,
            torch.full_like(clean, 2 * progress - 1),
        ],
        dim=1,
    )
    if not bool((seen := seen.float().cpu()).isfinite().all()):
        raise NonFiniteLossError("the attack has values that are not finite")
    return seen.clamp(-BOUND, BOUND)


class AttackStepVectorEnv(ViewsVectorEnv):
    """Choose before each step of an attack, for every view of the batch, whether the step is worth its price.

    ## Description
    A target network learns from images without labels, and every view is attacked before the network learns from it
    (ASTrA, ICLR 2025). Here the attack itself is the episode: the attacked views of a batch are the sub-environments,
    and a step moves each view once along the sign of its gradient, or stops it. Views that have stopped stay in the
    contrastive loss, but the network no longer encodes them, which saves their time. When the attack is over the target
    network learns from what came out, and the next batch's attack begins. Make the environment with
    `gymnasium.make_vec`; `gymnasium.make` does not work.

    ## Action Space
    Of a sub-environment: `Discrete(1 + k)` for k step sizes. 0 stops the view for the rest of its episode, in which its
    actions are not read; i is one more step of the i-th of `step_sizes`.

    ## Observation Space
    Of a sub-environment: `Box(-10, 10, (8,), float32)`:
    | index | what | unit |
    |---|---|---|
    | 0 | gain so far: the view's attacked loss now, minus its clean loss | the loss |
    | 1 | sum of the absolute gradient over the pixels; once stopped, the last one | decimal logarithm |
    | 2 | mean product of the signs of the last two gradients, 0 before the first step | -1 to 1 |
    | 3 | mean distance of the pixels from the clean view | `epsilon` |
    | 4 | steps left, 0 once stopped | share of `horizon` |
    | 5 | price of a step | the loss |
    | 6 | clean loss | the loss |
    | 7 | training progress: from -1 at the first planned update to 1 after the last | |

    ## Rewards
    For a view that moves, the rise of its attacked loss by the step minus `price`, float64; 0 for one that has stopped,
    although the others still move its loss. So the return is the view's loss after its last step, minus that of its
    start and the price of its steps. The weights of the world's own reward have no effect on it.

    ## Starting State
    `reset(seed=s)` makes a new world: initial target weights and every random stream. `reset()` gives the first
    observation of the coming batch's attack; an attack that has begun is dropped, begins anew from another random
    start, and counts in the passes that the run has spent.

    ## Episode End
    All sub-environments are *terminated* together, when every view has stopped or after `horizon` steps. Autoreset is
    `SAME_STEP`, declared in `metadata`: `infos["final_obs"]` and `infos["final_info"]` hold the ended episode, and the
    observation is the first of the next batch. After the last planned update the world begins its next training run, as
    `ViewAttackVectorEnvV1` does: `infos["run"]`, `infos["new_run"]`.

    `infos` holds at each step, per view, the steps taken (`budget/steps`) and the attacked loss (`attack/loss`); at the
    end also what `ViewAttackVectorEnv` has (`reward/adversarial`, `budget/strength`, `loss/total`, ...), where
    `budget/step_size` is the mean size of the steps.

    ## Rendering
    `render_mode="rgb_array"` gives a frame for each view: its clean image, where its attack stands and the change, its
    steps, loss and last reward; beside them its loss step by step, and how many steps the batch's views have taken. At
    an episode's end the frame is of the attack that ended. Drawing changes no random stream.

    ## Wrappers
    `RecordEpisodeStatistics`, `RecordVideo` with a `video_length`, `NormalizeReward`, `ClipReward`, `TransformReward`
    and `DictInfoToList` work; `NormalizeObservation` and those that change single observations refuse `SAME_STEP`.

    Args:
        num_envs: 1 (what `make_vec` passes by default) or exactly the number of attacked views, as in
            `ViewAttackVectorEnv`.
        epsilon: radius of every view's ball, a fraction in (0, 1].
        step_sizes: sizes among which a step chooses, fractions in (0, 1].
        price: price of a step, in units of the loss, 0 or more.
        horizon: most steps of an attack.
        seed: seed of the first world.
        device: device of the target network.
        engine: a world made elsewhere, instead of `world`.
        render_mode: `rgb_array` or None.
        world: settings of the world, as `astra_gym.envs.world_config.WorldSettings`.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting, the number of sub-environments or an action is wrong, or the method has no attack
            whose views may stop one by one.
        NonFiniteLossError: in a step whose losses or gradients are not finite.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = ViewsVectorEnv.metadata | DRAWN  # type: ignore[misc]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        epsilon: float = 8 / 255,
        step_sizes: Sequence[float] = (1 / 255, 2 / 255, 4 / 255),
        price: float = 0.02,
        horizon: int = 14,
        seed: int = 0,
        device: str = "cpu",
        engine: AttackEngine | None = None,
        render_mode: str | None = None,
        **world: Any,
    ) -> None:
        sizes = members(step_sizes, "step_sizes")
        for name, value in [("epsilon", epsilon), *(("a member of step_sizes", size) for size in sizes)]:
            check_number(name, value, 0, 1, "in (0, 1], in the images' unit: 8/255 and not 8", above=True)
        check_number("the number of step_sizes", len(sizes), 1, whole=True)
        check_number("price", price)
        check_number("horizon", horizon, 1, whole=True)
        engine = world_of(type(self), engine, seed, device, world)
        if engine.settings.ranges != RangesSection() or engine.settings.attack.attack_stop is not None:
            raise ValueError(
                "action_epsilons, action_steps, action_step_sizes and attack_stop have no effect here: give epsilon, "
                "horizon and step_sizes, and leave them out"
            )
        engine.learner.check_stepwise()
        self.epsilon, self.price, self.horizon = float(epsilon), float(price), horizon
        self._sizes = torch.tensor([0.0, *sizes])
        seen = spaces.Box(-BOUND, BOUND, (len(OBSERVED),), np.float32)
        chosen = meaning(spaces.Discrete(len(self._sizes)), {"step_size": [0.0, *sizes]})
        super().__init__(engine, num_envs, engine.num_attacked, seen, chosen)
        self.render_mode, self.renderer = render_mode, AttackRenderer(self.epsilon, horizon, render_mode)
        self.runs = RunSequence(engine)
        self._radii = torch.full((self.num_envs,), self.epsilon)
        self._attack: StepwiseAttack | None = None

    @property
    def attack(self) -> StepwiseAttack:
        """The attack on the coming batch."""
        return self._begin() if self._attack is None else self._attack

    def _begin(self, saved: Mapping[str, Any] | None = None) -> StepwiseAttack:
        """Begin the attack on the coming batch, or continue a saved one."""
        self._attack, self._clean = self.engine.begin_attack(self._radii, None if saved is None else saved["attack"])
        self._walked = torch.zeros(self.num_envs, dtype=torch.float64) if saved is None else saved["walked"].clone()
        self.renderer.begin(self._attack)
        return self._attack

    def _saved(self) -> dict[str, Any]:
        return {"attack": self.attack.state_dict(), "walked": self._walked.clone()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world if a seed is given; begin the attack on the coming batch."""
        self._seed(seed)
        dropped = self._attack is not None and bool((self._attack.stopped | (self._attack.steps > 0)).any())
        if dropped and seed is None:
            self.engine.tried_steps += int(self.attack.steps.sum())
        if dropped or seed is not None or self.runs.over:
            self._attack = None
        self.runs.begin(seed)
        observation = self._observation()
        self._keep()
        return observation, {}

    def _keep(self, rewards: np.ndarray | None = None) -> None:
        about = f"run {self.runs.run}, update {self.engine.step + 1}, {self.engine.progress:.0%} done"
        self.renderer.keep(self.attack, self._clean, about, rewards)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move or stop every view; when all have stopped, train the target network once.

        Raises:
            ResetNeeded: if the world was made elsewhere, and its training run is over.
        """
        self.runs.check_playable()
        chosen, attack = self._checked(actions), self.attack
        moving, before = (chosen > 0) & ~attack.stopped, attack.values
        with self.engine.working():
            attack.advance(self._sizes[chosen], moving)
        self._walked += torch.where(moving, self._sizes[chosen], 0.0)
        rise = (attack.values.double() - before.double()).cpu()
        rewards = torch.where(moving, rise - self.price, 0.0).numpy()
        observation = self._observation()
        self._keep(rewards)
        found = {"budget/steps": attack.steps, "attack/loss": attack.values}
        over = bool(attack.stopped.all()) or int(attack.steps.max()) == self.horizon
        if over:
            found = self._train() | found
        infos = self._for_each(found)
        if over:
            infos, observation = self._ended(infos, observation), self._observation()
        terminated = np.full(self.num_envs, over)
        return observation, rewards, terminated, np.zeros_like(terminated), infos

    def _checked(self, actions: Any) -> Tensor:
        """The actions as indices (n,), or a ValueError."""
        chosen = as_actions(actions)
        good = chosen.shape == (self.num_envs,) and not chosen.is_floating_point()
        if not good or not bool(((chosen >= 0) & (chosen < len(self._sizes))).all()):
            raise ValueError(
                f"actions are {shown(chosen.tolist())}: expected {self.num_envs} integers from 0 (stop) to "
                f"{len(self._sizes) - 1}"
            )
        return chosen.long()

    def _train(self) -> dict[str, Any]:
        """Train the target on the attacked views; the next attack begins when it is looked at."""
        attack, engine = self.attack, self.engine
        mean = (self._walked / attack.steps.clamp(min=1)).float()
        engine.play(Budget(epsilon=self._radii, step_size=mean, steps=attack.steps), attack.result())
        self._attack, over = None, self.runs.over
        found = step_info(engine) | {"run": self.runs.run, "new_run": over}
        if over:
            self.runs.renew()
        return found

    def _observation(self) -> np.ndarray:
        # the attack first: if it only begins now, it finds the clean losses
        attack, progress = self.attack, self.engine.progress
        own = {"epsilon": self.epsilon, "price": self.price}
        try:
            return attack_observation(attack, self._clean, horizon=self.horizon, progress=progress, **own).numpy()
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"before update {self.engine.step + 1} {error}") from error

    def render(self) -> Any:
        """Draw the attack after its last step: a frame (h, w, 3) uint8 for each view; None without a render mode.

        Raises:
            ResetNeeded: before the first reset.
        """
        return self.renderer.frames()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue within an attack: plain values and tensors."""
        # first the attack: if it only begins now, it draws its start
        saved, runs = self._saved(), {"seed": self.runs.seed, "run": self.runs.run}
        return saved | {"runs": runs, "engine": copy.deepcopy(self.engine.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the attack of `state_dict`, of an environment with the same settings."""
        self.engine.load_state_dict(copy.deepcopy(state["engine"]))
        self.runs.seed, self.runs.run = state["runs"]["seed"], state["runs"]["run"]
        self._begin(state)

    def __getstate__(self) -> dict[str, Any]:
        # the attack's functions have no name by which another process could find them
        return vars(self) | {"_attack": None if self._attack is None else self._saved()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_attack": None})
        if state["_attack"] is not None:
            self._begin(state["_attack"])
