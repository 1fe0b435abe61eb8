"""What an attack is paid: the reward's named terms, their weights, and what some of them remember.

    reward = reward_adversarial * adversarial - reward_clean * clean - reward_mixed * mixed
             - reward_cost * cost
             + reward_lookahead * (lookahead_adversarial + lookahead_clean)
             + reward_progress * progress

| term | what, for each attacked view | source |
|---|---|---|
| `adversarial`, `clean`, `mixed` | the method's losses on the weights that the attack saw | r of ASTrA, ICLR 2025 |
| `cost` | gradient steps that the view's budget spends (none in free training) | ours |
| `lookahead_adversarial` | attacked loss of held-out views before the update minus after it | R2 of LAS-AT, CVPR 2022 |
| `lookahead_clean` | the same of their clean loss | R3 of LAS-AT |
| `progress` | the view's attacked loss when its image was last seen, minus now | ours |

LAS-AT scores a copy of the network after one step, by labels: R2 is its robust accuracy and R3 its clean accuracy. Here
losses stand for accuracies, the update is the target's own, the views are held out and attacked always alike, and the
change is paid rather than the level, which the action did not make. An update is made by all views at once: its two
terms are the same for each. A positive term of the last three rows means that learning went forward.

A method without an attack has no terms: its weights are not used, and nothing is held out.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget, Objective
from astra_gym.ssl_core.methods import find_method
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams

NOISE = "lookahead/noise"
"""The stream of the look-ahead's random start. It stands still: every attack on the held-out views starts alike."""


def held_out_rows(settings: WorldSettings, images: int, streams: Streams) -> Tensor | None:
    """Rows (lookahead_images,) int64 of the training images that the look-ahead keeps for itself; None without one.

    They are drawn from a stream of their own, in ascending order.

    Args:
        images: number of training images.

    Raises:
        ValueError: if fewer images are left than a batch has.
    """
    if not (settings.reward_lookahead and find_method(settings.method).attacks):
        return None
    left = images - settings.lookahead_images
    if left < settings.batch_size:
        raise ValueError(
            f"lookahead_images is {settings.lookahead_images} of {images} training images: that leaves {max(left, 0)}, "
            f"less than a batch of {settings.batch_size}; lower lookahead_images or batch_size, or raise the limit"
        )
    order = torch.randperm(images, generator=streams["lookahead/images"])
    return order[: settings.lookahead_images].sort().values


class LookAhead:
    """What an update does to held-out views: they and their attack stay the same, the weights alone change.

    The attack is the method's default one of the first step, from one random start (common random numbers).

    Args:
        learner: whose updates are judged.
        streams: they hold `NOISE`.
        rows: (q,) which training images are held out.
        views: (p, 3, h, w), all that the method makes of them.
    """

    def __init__(self, learner: TargetLearner, streams: Streams, rows: Tensor, views: Tensor) -> None:
        self._learner = learner
        self._streams = streams
        self.rows = rows
        self.views = views
        self.attack_steps = 0
        """Gradient steps that its attacks have made since it was built, times their views."""
        self._before: Tensor | None = None

    def losses(self) -> Tensor:
        """(2,): mean loss of the attacked and of the clean views, on the present weights, in the attack's mode."""
        method = self._learner.method
        own = method.budget_at(0)
        attacked_views = len(method.attacked(self.views))
        budget = own.expand(attacked_views)
        generator = self._streams.on_device(NOISE)
        start = generator.get_state()
        objective = self._learner.objective(self.views)
        with self._learner.untracked():
            attacked = self._learner.attack(self.views, budget, generator, objective)
        generator.set_state(start)
        self.attack_steps += own.steps * attacked_views
        clean = self._learner.look(self.views)
        return torch.stack([objective(z).mean() for z in (attacked.embeddings, clean.embeddings)])

    def before_update(self) -> None:
        """Measures where the last update did not."""
        if self._before is None:
            self._before = self.losses()

    def after_update(self, n: int) -> dict[str, Tensor]:
        """The two terms, (n,) each."""
        if self._before is None:
            raise ValueError("there is nothing to compare with: call before_update() before the update")
        after = self.losses()
        fall = self._before - after
        # the next update begins on the weights that this one made
        self._before = after
        names = ("lookahead_adversarial", "lookahead_clean")
        return {name: value.expand(n).contiguous() for name, value in zip(names, fall, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The held-out rows and views, and the losses on the present weights, if they are known."""
        return {"rows": self.rows, "views": self.views, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restores what `state_dict` gave; `restarted` names the streams that could not be continued.

        Raises:
            ValueError: if it is of other views.
        """
        device = self.views.device
        if state["views"].shape != self.views.shape:
            got, expected = tuple(state["views"].shape), tuple(self.views.shape)
            raise ValueError(f"the state holds out views of {got}, this run of {expected}: take the same")
        self.rows = state["rows"]
        self.views = state["views"].to(device).contiguous(memory_format=torch.channels_last)
        before = state["before"]
        # from another random start they are not comparable
        self._before = None if before is None or NOISE in restarted else before.to(device)


class LossMemory:
    """Each training view's attacked loss when its image was last seen.

    Args:
        images: number of training images.
        slots: attacked views of an image.
        device: where the losses are.
    """

    def __init__(self, images: int, slots: int, device: torch.device) -> None:
        self._last = torch.full((images, slots), torch.nan, device=device)
        """NaN where the image was not seen yet."""

    def fall(self, rows: Tensor, losses: Tensor) -> Tensor:
        """How far the losses fell since their images were last seen, 0 where they were not; they are kept instead.

        Args:
            rows: (b,) which training images.
            losses: (b * slots,), those of an image together.
        """
        rows = rows.to(self._last.device, non_blocking=True)
        now = losses.view(len(rows), -1).to(self._last.dtype)
        last = self._last[rows]
        self._last[rows] = now
        return torch.where(last.isnan(), 0.0, last - now).view(-1)

    def state_dict(self) -> dict[str, Any]:
        """The losses (images, slots)."""
        return {"last": self._last.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; ValueError if it is of other data."""
        if state["last"].shape != self._last.shape:
            got, expected = tuple(state["last"].shape), tuple(self._last.shape)
            raise ValueError(f"the state has losses of {got} images and views, this run {expected}: take the same data")
        self._last = state["last"].to(self._last.device).clone()


class Rewards:
    """The reward of one world: its terms, their sum, and their memory.

    Args:
        settings: weights and scope.
        learner: the target network.
        streams: the world's.
        images: number of training images.
    """

    def __init__(self, settings: WorldSettings, learner: TargetLearner, streams: Streams, images: int) -> None:
        self._settings = settings
        self._learner = learner
        self._streams = streams
        self._weights = {
            "adversarial": settings.reward_adversarial,
            "clean": -settings.reward_clean,
            "mixed": -settings.reward_mixed,
            "cost": -settings.reward_cost,
            "lookahead_adversarial": settings.reward_lookahead,
            "lookahead_clean": settings.reward_lookahead,
            "progress": settings.reward_progress,
        }
        self.lookahead: LookAhead | None = None
        self.progress: LossMemory | None = None
        if settings.reward_progress and learner.method.attacks:
            slots = learner.method.num_attacked(settings.batch_size) // settings.batch_size
            self.progress = LossMemory(images, slots, learner.device)

    def look_at(self, rows: Tensor, views: Tensor) -> None:
        """From now on updates are judged on these held-out views; see `LookAhead`."""
        self.lookahead = LookAhead(self._learner, self._streams, rows, views)

    @property
    def held_out(self) -> Tensor | None:
        """Rows of the training images that no batch may hold; None: none are held out."""
        return None if self.lookahead is None else self.lookahead.rows

    @property
    def attack_steps(self) -> int:
        """Gradient steps that the terms themselves have made since the world was built, times their views."""
        return 0 if self.lookahead is None else self.lookahead.attack_steps

    @property
    def only_frozen(self) -> bool:
        """Whether the reward is that of the attack alone: no term judges the update or remembers the images."""
        return self.lookahead is None and self.progress is None

    def frozen_terms(
        self, objective: Objective, clean: Tensor, adversarial: Tensor, budget: Budget
    ) -> dict[str, Tensor]:
        """The terms of an attack on a network that learns nothing, (n,) each.

        Args:
            objective: what the attack maximises on this batch.
            clean: (n, d) embeddings of the clean views.
            adversarial: those of the attacked views.
            budget: n entries.
        """
        terms = self._learner.method.reward_terms(objective, clean, adversarial)
        if self._settings.reward_cost:
            terms["cost"] = self._learner.method.attack_steps(budget).float().to(clean.device, non_blocking=True)
        return terms

    def before_update(self, rows: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """Further terms that are known before the update, (n,) each.

        Args:
            rows: which training images the batch holds.
            losses: (n,) the attacked views' losses.
        """
        if self.lookahead is not None:
            self.lookahead.before_update()
        return {} if self.progress is None else {"progress": self.progress.fall(rows, losses)}

    def after_update(self, n: int) -> dict[str, Tensor]:
        """Further terms that the update shows, (n,) each."""
        return {} if self.lookahead is None else self.lookahead.after_update(n)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The reward (n,): the weighted sum, and with the scope `batch` its mean for all."""
        reward = torch.stack([self._weights[name] * values for name, values in terms.items()]).sum(dim=0)
        if self._settings.reward_scope == "batch":
            reward = reward.mean().expand_as(reward).contiguous()
        return reward

    def _memories(self) -> dict[str, LookAhead | LossMemory]:
        held = {"lookahead": self.lookahead, "progress": self.progress}
        return {name: memory for name, memory in held.items() if memory is not None}

    def state_dict(self) -> dict[str, Any]:
        """What the terms remember, by name; nothing in a world without such terms."""
        return {name: memory.state_dict() for name, memory in self._memories().items()}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restores what `state_dict` gave.

        Args:
            restarted: names of the random streams that could not be continued.

        Raises:
            ValueError: if it is of a world with other terms, or of other data.
        """
        memories = self._memories()
        if state.keys() != memories.keys():
            saved, ours = (", ".join(sorted(names)) or "nothing" for names in (state, memories))
            raise ValueError(
                f"the state's reward terms remember {saved}, this run's {ours}: resume with the same reward weights"
            )
        if self.lookahead is not None:
            self.lookahead.load_state_dict(state["lookahead"], restarted)
        if self.progress is not None:
            self.progress.load_state_dict(state["progress"])
