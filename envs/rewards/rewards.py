"""The reward of one world: the weighted sum of its terms, and their memory."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.envs.rewards.term import FrozenAttack, HeldOut, MethodTerm, RewardTerm, RewardWorld
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.methods import find_method
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams


def held_out_rows(settings: WorldSettings, images: int, streams: Streams) -> Tensor | None:
    """Draw the rows (lookahead_images,) int64 of the training images that the reward holds out; None if it holds none.

    They come from a separate stream, in ascending order.

    Args:
        images: number of training images.

    Raises:
        ValueError: if fewer images are left than a batch has.
    """
    if not find_method(settings.method.method).attacks:
        return None
    if not any(kind.holds_out for kind in settings.reward.paid_terms().values()):
        return None
    held, batch = settings.reward.lookahead_images, settings.optimizer.batch_size
    if (left := images - held) < batch:
        raise ValueError(
            f"lookahead_images is {held} of {images} training images: that leaves {max(left, 0)}, "
            f"less than a batch of {batch}; lower lookahead_images or batch_size, or raise the limit"
        )
    order = torch.randperm(images, generator=streams["lookahead/images"])
    return order[:held].sort().values


class Rewards:
    """The terms of one world, their sum, and their memory.

    Args:
        settings: settings of the world, with weights and scope.
        learner: the target network.
        streams: random streams of the world.
        images: number of training images.
        held_out: images of the rows that `held_out_rows` gave.
    """

    def __init__(
        self,
        settings: WorldSettings,
        learner: TargetLearner,
        streams: Streams,
        images: int,
        held_out: HeldOut | None = None,
    ) -> None:
        self._settings = settings
        self._learner = learner
        self._held_out = held_out
        world = RewardWorld(learner, streams, images, settings.optimizer.batch_size, held_out)
        kinds = settings.reward.paid_terms() if learner.method.attacks else {}
        self.terms: dict[str, RewardTerm] = {name: kind(world) for name, kind in kinds.items()}
        """Terms beside the method's own, by name or dotted path."""
        own = {name: kind for name, kind in REWARD_TERMS.items() if issubclass(kind, MethodTerm)}
        self._weights = {name: kind.sign * settings.reward.weights[name] for name, kind in (own | kinds).items()}
        self._own = tuple(own)
        self._given_by: dict[str, str] = {}
        """Name of the term that gives a value."""

    @property
    def held_out(self) -> Tensor | None:
        """Rows of the training images that no batch may hold; None if no images are held out."""
        return None if self._held_out is None else self._held_out.rows

    @property
    def attack_steps(self) -> int:
        """Gradient steps of the terms' own attacks since the world was built, times their views."""
        return sum(term.attack_steps for term in self.terms.values())

    @property
    def only_frozen(self) -> bool:
        """Whether the reward depends on the attack alone: no term uses the update or earlier losses of the images."""
        return not (self._override("before_update") or self._override("after_update"))

    @property
    def judges_updates(self) -> bool:
        """Whether a term gives values after an update."""
        return self._override("after_update")

    def _override(self, hook: str) -> bool:
        return any(getattr(type(term), hook) is not getattr(RewardTerm, hook) for term in self.terms.values())

    def frozen_terms(self, attack: FrozenAttack) -> dict[str, Tensor]:
        """Return the values of an attack on a network that learns nothing, (n,) each.

        Raises:
            ValueError: if the method names a term that is not its own, a term gives values that are not (n,), or it
                gives values of another term.
        """
        given = (attack.objective, attack.clean_embeddings, attack.adversarial_embeddings)
        terms = self._learner.method.reward_terms(*given)
        for name in terms:
            if name not in self._own:
                raise ValueError(
                    f"reward_terms of the method {shown(self._settings.method.method)} give {shown(name)}: expected "
                    f"names among {', '.join(self._own)}; any other term is a RewardTerm, weighed by --reward_weights"
                )
            self._given_by[name] = name
        with torch.no_grad():
            for name, term in self.terms.items():
                self._add(terms, name, term.frozen(attack), len(attack.views))
        return terms

    def before_update(self, rows: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """Return further values that are known before the update, (n,) each.

        Args:
            rows: (b,) rows of the batch's training images.
            losses: (n,) the attacked views' losses.
        """
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            self._add(values, name, term.before_update(rows, losses), len(losses))
        return values

    def after_update(self, n: int) -> dict[str, Tensor]:
        """Return further values that are known after the update, (n,) each."""
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            self._add(values, name, term.after_update(n), n)
        return values

    def _add(self, values: dict[str, Tensor], name: str, given: Mapping[str, Tensor], n: int) -> None:
        for key, value in given.items():
            if not isinstance(value, Tensor) or value.shape != (n,) or not value.is_floating_point():
                found = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ValueError(
                    f"the reward term {shown(name)} gives {shown(key)} as {found}: expected floats ({n},), a value for "
                    "each attacked view"
                )
            if (other := self._given_by.setdefault(key, name)) != name:
                raise ValueError(
                    f"the reward terms {shown(other)} and {shown(name)} both give {shown(key)}: rename one"
                )
            values[key] = value

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the reward (n,): the weighted sum, and with the scope `batch` its mean for all."""
        paid = [self._weights[self._given_by[name]] * values for name, values in terms.items()]
        reward = torch.stack(paid).sum(dim=0)
        if self._settings.reward.reward_scope == "batch":
            reward = reward.mean().expand_as(reward).contiguous()
        return reward

    def numbers(self) -> dict[str, Any]:
        """Return all remembered values that must be finite, by name."""
        return {name: term.numbers() for name, term in self.terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what the terms remember, by name; empty in a world without such terms."""
        states = {name: term.state_dict() for name, term in self.terms.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave.

        Args:
            restarted: names of the random streams that could not be continued.

        Raises:
            ValueError: if the state is of a world with other terms, or of other data.
        """
        ours = self.state_dict()
        if state.keys() != ours.keys():
            saved, expected = (", ".join(sorted(names)) or "nothing" for names in (state, ours))
            raise ValueError(
                f"the state's reward terms remember {saved}, this run's {expected}: resume with the same reward weights"
            )
        for name, term in self.terms.items():
            if name in state:
                term.load_state_dict(state[name], restarted)
