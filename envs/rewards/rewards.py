"""The reward of one world: the weighted sum of its terms, and their memory."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.envs.rewards.term import ExamImages, FrozenAttack, HeldOut, MethodTerm, RewardTerm, RewardWorld
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.import_path import described
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams


class HeldOutRows(NamedTuple):
    """Rows of the training images that enter no batch, int64, ascending; None where no term needs them.

    Args:
        lookahead: rows for terms that hold out views.
        exams: rows for terms that give exams.
    """

    lookahead: Tensor | None = None
    exams: Tensor | None = None

    @property
    def all(self) -> Tensor | None:
        """All rows, (h,); None if there are none."""
        found = [rows for rows in self if rows is not None]
        return torch.cat(found).sort().values if found else None


def held_out_rows(settings: WorldSettings, images: int, streams: Streams) -> HeldOutRows:
    """Draw the rows of the training images that the reward holds out, from streams of their own.

    Args:
        images: number of training images.

    Raises:
        ValueError: if fewer images are left than a batch has.
    """
    if not settings.method.make().attack.exists:
        return HeldOutRows()
    kinds, batch, rows = settings.reward.paid_terms().values(), settings.optimizer.batch_size, HeldOutRows()
    counts = {
        "lookahead_images": any(kind.holds_out for kind in kinds) * settings.reward.lookahead_images,
        "judge_images": any(kind.examines for kind in kinds) * settings.judge.judge_images,
    }
    held = {name: count for name, count in counts.items() if count}
    if held and (left := images - sum(held.values())) < batch:
        said = " and ".join(f"{name} is {count}" for name, count in held.items())
        raise ValueError(
            f"{said} of {images} training images: that leaves {max(left, 0)}, less than a batch of {batch}; lower "
            f"{' or '.join([*held, 'batch_size'])}, or raise the limit"
        )
    if count := counts["lookahead_images"]:
        order = torch.randperm(images, generator=streams["lookahead/images"])
        rows = rows._replace(lookahead=order[:count].sort().values)
    if count := counts["judge_images"]:
        order = torch.randperm(images, generator=streams["exams/images"])
        if rows.lookahead is not None:
            order = order[~torch.isin(order, rows.lookahead)]
        rows = rows._replace(exams=order[:count].sort().values)
    return rows


class Rewards:
    """The terms of one world, their sum, and their memory.

    Args:
        settings: settings of the world, with weights and scope.
        learner: the target network.
        streams: random streams of the world.
        images: number of training images.
        rows: what `held_out_rows` gave.
        views_of: makes the method's views (v, 3, h, w) of rows of training images, with the stream of a name.
    """

    def __init__(
        self,
        settings: WorldSettings,
        learner: TargetLearner,
        streams: Streams,
        images: int,
        rows: HeldOutRows,
        views_of: Callable[[Tensor, str], Tensor],
    ) -> None:
        self._settings = settings
        self._learner = learner
        lookahead, exams = rows
        self._held_out = None if lookahead is None else HeldOut(lookahead, views_of(lookahead, "lookahead/views"))
        self._exams = None if exams is None else ExamImages(exams, lambda drawn: views_of(drawn, "exams/views"))
        batch = settings.optimizer.batch_size
        target = settings.reward.cost_target
        world = RewardWorld(learner, streams, images, batch, self._held_out, self._exams, settings.judge, target)
        kinds = settings.reward.paid_terms() if learner.method.attack.exists else {}
        self.terms: dict[str, RewardTerm] = {name: kind(world) for name, kind in kinds.items()}
        """Terms beside the method's own, by name or dotted path."""
        own = {name: kind for name, kind in REWARD_TERMS.items() if issubclass(kind, MethodTerm)}
        self._weights = {name: kind.sign * settings.reward.weights[name] for name, kind in (own | kinds).items()}
        self._own = tuple(own)
        # a row has these of the reward itself
        self._given_by = dict.fromkeys(("mean", "std"), "the reward")
        """Name of the term that gives a value."""

    @property
    def held_out(self) -> Tensor | None:
        """Rows of the training images that no batch may hold; None if no images are held out."""
        parts = (None if each is None else each.rows for each in (self._held_out, self._exams))
        return HeldOutRows(*parts).all

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
        return any(term.overrides(hook) for term in self.terms.values())

    def frozen_terms(self, attack: FrozenAttack) -> dict[str, Tensor]:
        """Return the values of an attack on a network that learns nothing, (n,) each.

        Raises:
            ValueError: if the method names a term that is not its own, a term gives values that are not (n,), or it
                gives values of another term.
        """
        given = (attack.objective, attack.clean_embeddings, attack.adversarial_embeddings)
        gives = f"reward_terms of the method {shown(self._settings.method.method)} give"
        terms = _checked(gives, self._learner.method.reward_terms(*given), len(attack.views))
        for name in terms:
            if name not in self._own:
                raise ValueError(
                    f"{gives} {shown(name)}: expected names among {', '.join(self._own)}; any other term is a "
                    "RewardTerm, weighed by --reward_weights"
                )
            self._given_by[name] = name
        if "adversarial" not in terms:
            raise ValueError(f"{gives} no 'adversarial': expected the loss of each attacked view")
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
        for key, value in _checked(f"the reward term {shown(name)} gives", given, n).items():
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
            ValueError: if the state is of a world with other terms, of another version of a term, or of other data.
        """
        ours = self.state_dict()
        if state.keys() != ours.keys():
            saved, expected = (", ".join(sorted(names)) or "nothing" for names in (state, ours))
            raise ValueError(
                f"the state's reward terms remember {saved}, this run's {expected}: resume with the same reward weights"
            )
        for name, term in self.terms.items():
            if name in state:
                try:
                    term.load_state_dict(state[name], restarted)
                except KeyError as error:
                    raise ValueError(
                        f"the state of the reward term {shown(name)} has no {error}: another version of the term wrote "
                        "it; resume with that version, or begin anew"
                    ) from error


def _checked(gives: str, given: object, n: int) -> dict[str, Tensor]:
    """Return the values of a term or method, without gradient; raise a ValueError unless each is floats (n,)."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{gives} {described(given)}: expected values by name, {{}} for none")
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.shape != (n,) or not value.is_floating_point():
            found = tuple(value.shape) if isinstance(value, Tensor) else described(value)
            raise ValueError(
                f"{gives} {shown(name)} as {found}: expected floats ({n},), a value for each attacked view"
            )
    return {name: value.detach() for name, value in given.items()}
