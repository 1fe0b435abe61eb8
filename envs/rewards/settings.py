"""The section of the settings on the reward."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from astra_gym.envs.rewards.registry import REWARD_TERMS, find_term
from astra_gym.envs.rewards.term import MethodTerm, RewardTerm
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.settings.checks import check_options
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import written_out
from astra_gym.ssl_core.utils.registry import unknown

REWARD_SCOPES = {"view": "each view is paid for its own attack", "batch": "one shared scalar, as in the paper"}


@dataclass(frozen=True, kw_only=True)
class RewardSection:
    """The terms of the reward and their weights.

    A weight of `reward_weights` that also has a setting, such as `reward_cost`, moves into that setting, so that a
    record holds each weight once. No custom module is imported.

    Args:
        reward_scope: view: a reward for each view's own attack; batch: the paper's one scalar for all; auto: view, or
            what reinforce-paper fixes.
        reward_adversarial: weight of the attacked loss in the reward (1/3 in ASTrA's run).
        reward_clean: weight of the clean loss, which is subtracted (1/3).
        reward_mixed: weight of the mixed loss, which is subtracted (0).
        reward_cost: weight of the attack's cost in gradient steps, which is subtracted; 0: not computed.
        cost_target: mean attack steps a view to which the term cost drives the agent: its price rises while attacks are
            longer, and falls while they are shorter; between the fewest and the most steps that actions choose among;
            null: its price is 1.
        reward_lookahead: weight of how much the update lowered the attacked plus the clean loss of held-out views,
            which is added (`LookAhead`); 0: not computed, and nothing is held out.
        lookahead_images: training images held out for the term lookahead, 2 or more; they enter no training batch.
        reward_progress: weight of the fall of a view's own attacked loss since its image was last seen, which is added;
            0: not computed.
        reward_judge: weight of the fall of held-out views' loss at the judged radius from exam to exam, which is added
            (`Judge`); 0: not computed.
        reward_alignment: weight of each view's share in such a fall by one update, which is added (`Alignment`); 0: not
            computed.
        reward_weights: weights of reward terms by name (adversarial and clean: 1/3 by default, mixed, cost, lookahead,
            progress, judge, alignment: 0), or by the dotted path of a custom term, my_module:MyTerm (`RewardTerm`).

    Raises:
        ValueError: if a name is unknown, a weight is not a finite number, or one is given in both places.
    """

    reward_scope: Annotated[str, Notes(choices=("auto", *REWARD_SCOPES), what="reward scope")] = "auto"
    reward_adversarial: Annotated[float, Notes(instead="reward_weights.adversarial")] = 1 / 3
    reward_clean: Annotated[float, Notes(instead="reward_weights.clean")] = 1 / 3
    reward_mixed: Annotated[float, Notes(instead="reward_weights.mixed")] = 0.0
    reward_cost: Annotated[float, Notes(instead="reward_weights.cost")] = 0.0
    cost_target: Annotated[float | None, Notes(unit="STEPS")] = None
    reward_lookahead: Annotated[float, Notes(instead="reward_weights.lookahead")] = 0.0
    lookahead_images: Annotated[int, Notes(unit="IMAGES")] = 24
    reward_progress: Annotated[float, Notes(instead="reward_weights.progress")] = 0.0
    reward_judge: Annotated[float, Notes(instead="reward_weights.judge")] = 0.0
    reward_alignment: Annotated[float, Notes(instead="reward_weights.alignment")] = 0.0
    reward_weights: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_options("reward_weights", self.reward_weights)
        left = {}
        for name, given in (self.reward_weights or {}).items():
            if name not in REWARD_TERMS and not is_dotted(name):
                raise unknown(name, REWARD_TERMS, "reward term")
            setting, weight = f"reward_{name}", written_out(given, float)
            check_number(f"reward_weights.{name}", weight, -math.inf, math.inf, "a finite number")
            if not hasattr(self, setting):
                left[name] = float(weight)
                continue
            other = getattr(self, setting)
            if other not in (getattr(RewardSection, setting), weight):
                raise ValueError(f"{setting} is {shown(other)} and reward_weights.{name} {weight}: give one of them")
            object.__setattr__(self, setting, float(weight))
        object.__setattr__(self, "reward_weights", left or None)
        for name, weight in self.weights.items():
            check_number(f"reward_{name}", weight, -math.inf, math.inf, "a finite number")
        if self.cost_target is not None:
            check_number("cost_target", self.cost_target, 0, math.inf, "a positive number of steps", above=True)
            if not self.reward_cost:
                raise ValueError(f"cost_target is {self.cost_target}, but reward_weights.cost is 0: give it a weight")
        pairs = "2 or more images, since each needs negatives"
        check_number("lookahead_images", self.lookahead_images, 2, math.inf, pairs, whole=True)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every term, by name or dotted path, in the order of the table."""
        own = {name: getattr(self, f"reward_{name}", 0.0) for name in REWARD_TERMS}
        return own | (self.reward_weights or {})

    def paid_terms(self) -> dict[str, type[RewardTerm]]:
        """Return the terms that a world computes beside the method's own: those with a weight other than 0.

        Raises:
            ValueError: if there is no term at a dotted path.
        """
        found = {name: find_term(name) for name, weight in self.weights.items() if weight}
        return {name: kind for name, kind in found.items() if not issubclass(kind, MethodTerm)}

    def check_terms(self, method: Method) -> None:
        """Check that the terms of the table suit the method; see `RewardTerm.check`.

        Raises:
            ValueError: if not.
        """
        for name, weight in self.weights.items():
            if weight and name in REWARD_TERMS:
                try:
                    REWARD_TERMS[name].check(method)
                except ValueError as error:
                    raise ValueError(f"reward_{name} is {weight}, but {error}: leave it out") from error
