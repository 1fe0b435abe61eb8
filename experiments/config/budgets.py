"""The budgets that agents without learning choose among, from a run's settings and its world's sets."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from astra_gym.envs.actions import ActionSets
from astra_gym.experiments.config.sections import AgentSection
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.messages import shown

FIRST_STEPS, MOST_STEPS = 2, 8
"""Steps with which the agent `accelerating` begins, and its usual cap (arXiv 2103.03076)."""


WIDE_STEP = ConstantBudget(epsilon=24 / 255, step_size=32 / 255, steps=1)
"""The attack with which the agent `escalating` begins where the world has it: the one constant for all instances in
results/tuning/global-fixed.json."""


def _scheduled(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    return [replace(own, epsilon=epsilon) for epsilon in chosen.schedule]


def _delayed(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    if sets.steps[0] == 0:
        return [replace(own, steps=0), own]
    if sets.epsilons[0] == 0:
        return [replace(own, epsilon=0.0), own]
    raise ValueError(
        f"the agent delayed begins with clean views, but actions begin at {sets.steps[0]} steps and a radius of "
        f"{shown(sets.epsilons[0])}: put 0 into --action_steps or --action_epsilons"
    )


def _accelerating(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    most = MOST_STEPS if chosen.steps is None else chosen.steps
    found = [steps for steps in sets.steps if FIRST_STEPS <= steps <= most]
    if not found:
        raise ValueError(
            f"the agent accelerating takes {FIRST_STEPS} to {most} steps, and actions have {shown(list(sets.steps))}: "
            "raise --steps, its cap, or change --action_steps"
        )
    return [replace(own, steps=steps) for steps in found]


def _escalating(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    ends = {"epsilon": sets.epsilons, "step_size": sets.step_sizes, "steps": [steps for steps in sets.steps if steps]}
    wide = {name: min(max(getattr(WIDE_STEP, name), values[0]), values[-1]) for name, values in ends.items() if values}
    own = replace(WIDE_STEP, **wide | chosen.budget)
    found = [own]
    for steps in sets.steps:
        if steps >= 2 * found[-1].steps > 0:
            # as far in all as the first attack goes
            size = max(own.step_size * own.steps / steps, min(sets.step_sizes))
            found.append(replace(own, steps=steps, step_size=size))
    return found


def _customized(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    found = [epsilon for epsilon in sets.epsilons if 0 < epsilon <= own.epsilon + 1e-9]
    if not found:
        raise ValueError(
            f"the agent customized takes radii up to {shown(own.epsilon)}, and actions have none: raise "
            "--epsilon, its cap, or change --action_epsilons"
        )
    return [replace(own, epsilon=epsilon) for epsilon in found]


def _friendly(chosen: AgentSection, own: ConstantBudget, sets: ActionSets) -> list[ConstantBudget]:
    return [own]


LISTS: Mapping[str, Callable[[AgentSection, ConstantBudget, ActionSets], list[ConstantBudget]]] = {
    "schedule": _scheduled,
    "delayed": _delayed,
    "accelerating": _accelerating,
    "escalating": _escalating,
    "customized": _customized,
    "friendly": _friendly,
}
"""Functions from an agent's settings, the budget that is given or else the method's own, and the world's sets, to the
agent's budgets, in its order; they raise a ValueError if there are none."""
