"""The table of reward terms, and the search for a custom one.

    reward = sum of sign * weight * value over all terms

| term | value for each attacked view | source |
|---|---|---|
| `adversarial`, `clean`, `mixed` | the method's losses on the weights that the attack saw | r of ASTrA, ICLR 2025 |
| `cost` | gradient steps that the view's budget spends (none in free training) | ours |
| `lookahead` | `lookahead_adversarial` and `lookahead_clean`: the fall of held-out views' losses | R2, R3 of LAS-AT |
| `progress` | the view's attacked loss when its image was last seen, minus the present one | ours |
| `judge` | the fall of held-out views' loss, attacked at the judged radius and clean, from exam to exam | ours |
| `alignment` | each view's share in such a fall by one update, to first order | after Ren et al. 2018 |

`clean`, `mixed` and `cost` are subtracted. A method without an attack has no terms: its weights are not used, and no
images are held out. A term of weight 0 is not computed, except those of the method.
"""

from astra_gym.envs.rewards.attack_terms import Adversarial, Clean, Cost, Mixed
from astra_gym.envs.rewards.exam_terms import Alignment, Judge
from astra_gym.envs.rewards.lookahead import LookAhead
from astra_gym.envs.rewards.progress import Progress
from astra_gym.envs.rewards.term import HOOKS, RewardTerm
from astra_gym.ssl_core.utils.import_path import imported_class, is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

REWARD_TERMS: dict[str, type[RewardTerm]] = {
    "adversarial": Adversarial,
    "clean": Clean,
    "mixed": Mixed,
    "cost": Cost,
    "lookahead": LookAhead,
    "progress": Progress,
    "judge": Judge,
    "alignment": Alignment,
}


def find_term(name: str) -> type[RewardTerm]:
    """Find a term by its name in `REWARD_TERMS`, or at a dotted path, my_module:MyTerm.

    Raises:
        ValueError: if there is no such term, or a custom one gives no values or has another sign than 1 and -1.
    """
    if not is_dotted(name):
        return pick(name, REWARD_TERMS, "reward term")
    found = imported_class(name, RewardTerm, "astra_gym.envs.rewards.term", "reward term")
    if not any(map(found.overrides, HOOKS)):
        raise ValueError(f"reward term {shown(name)} gives no values: expected one of the methods {', '.join(HOOKS)}")
    if found.sign not in (1, -1):
        raise ValueError(f"reward term {shown(name)} has the sign {shown(found.sign)}: expected 1, or -1 for a cost")
    return found
