"""The table of reward terms, the search for a custom one, and the settings that weigh them.

    reward = sum of sign * weight * value over all terms

| term | value for each attacked view | source |
|---|---|---|
| `adversarial`, `clean`, `mixed` | the method's losses on the weights that the attack saw | r of ASTrA, ICLR 2025 |
| `cost` | gradient steps that the view's budget spends (none in free training) | ours |
| `lookahead` | `lookahead_adversarial` and `lookahead_clean`: the fall of held-out views' losses | R2, R3 of LAS-AT |
| `progress` | the view's attacked loss when its image was last seen, minus the present one | ours |

`clean`, `mixed` and `cost` are subtracted. A method without an attack has no terms: its weights are not used, and no
images are held out. A term of weight 0 is not computed, except those of the method.
"""

import math
from typing import Any

from astra_gym.envs.data_config import check_options
from astra_gym.envs.rewards.attack_terms import Adversarial, Clean, Cost, Mixed
from astra_gym.envs.rewards.lookahead import LookAhead
from astra_gym.envs.rewards.progress import Progress
from astra_gym.envs.rewards.term import MethodTerm, RewardTerm
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import imported_class, is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import written_out
from astra_gym.ssl_core.utils.registry import pick, unknown

REWARD_TERMS: dict[str, type[RewardTerm]] = {
    "adversarial": Adversarial,
    "clean": Clean,
    "mixed": Mixed,
    "cost": Cost,
    "lookahead": LookAhead,
    "progress": Progress,
}


def find_term(name: str) -> type[RewardTerm]:
    """Find a term by its name in `REWARD_TERMS`, or at a dotted path, my_module:MyTerm.

    Raises:
        ValueError: if there is no such term.
    """
    if not is_dotted(name):
        return pick(name, REWARD_TERMS, "reward term")
    return imported_class(name, RewardTerm, "astra_gym.envs.rewards.term", "reward term")


def settle_weights(settings: Any) -> None:
    """Check a world's weights, and move those of `reward_weights` that also have a setting, such as `reward_cost`, into
    that setting, so that a record holds each weight once. No custom module is imported.

    Args:
        settings: a frozen dataclass with `reward_weights` and `reward_NAME`.

    Raises:
        ValueError: if a term is unknown, a weight is not a finite number, or one is given in both places.
    """
    check_options("reward_weights", settings.reward_weights)
    left = {}
    for name, given in (settings.reward_weights or {}).items():
        if name not in REWARD_TERMS and not is_dotted(name):
            raise unknown(name, REWARD_TERMS, "reward term")
        setting, weight = f"reward_{name}", written_out(given, float)
        check_number(f"reward_weights.{name}", weight, -math.inf, math.inf, "a finite number")
        if not hasattr(settings, setting):
            left[name] = float(weight)
            continue
        other = getattr(settings, setting)
        if other not in (getattr(type(settings), setting), weight):
            raise ValueError(f"{setting} is {shown(other)} and reward_weights.{name} {weight}: give one of them")
        object.__setattr__(settings, setting, float(weight))
    object.__setattr__(settings, "reward_weights", left or None)
    for name in REWARD_TERMS:
        if hasattr(settings, f"reward_{name}"):
            check_number(f"reward_{name}", getattr(settings, f"reward_{name}"), -math.inf, math.inf, "a finite number")


def weights_of(settings: Any) -> dict[str, float]:
    """Return the weight of every term, by name or dotted path, in the order of the table."""
    own = {name: getattr(settings, f"reward_{name}", 0.0) for name in REWARD_TERMS}
    return own | (settings.reward_weights or {})


def paid_terms(settings: Any) -> dict[str, type[RewardTerm]]:
    """Return the terms that a world computes beside the method's own: those with a weight other than 0.

    Raises:
        ValueError: if there is no term at a dotted path.
    """
    found = {name: find_term(name) for name, weight in weights_of(settings).items() if weight}
    return {name: kind for name, kind in found.items() if not issubclass(kind, MethodTerm)}


def check_terms(settings: Any, method: Method) -> None:
    """Check that the terms of the table suit the method; see `RewardTerm.check`.

    Raises:
        ValueError: if not.
    """
    for name, weight in weights_of(settings).items():
        if weight and name in REWARD_TERMS:
            try:
                REWARD_TERMS[name].check(method)
            except ValueError as error:
                raise ValueError(f"reward_{name} is {weight}, but {error}: leave it out") from error
