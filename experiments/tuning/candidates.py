"""What is searched: settings that change from candidate to candidate, drawn from a space by a seed."""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from astra_gym.envs.api.action_sets import UNIT, ActionSets
from astra_gym.experiments.config.flag_values import as_text
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

PARTS = 4
"""Parts of a schedule, as in ASTrA's slides."""
LR_SPAN, STRENGTHS = 8.0, (0.0, 1.0)
"""Learning rates are searched from an eighth of the world's to eight times it, on a logarithmic scale."""
STRIDE = 1.25
"""The length of a curve's attacks, in radii."""
DRAWN = 2**14
"""Most points that are drawn for different candidates."""
SET = re.compile(r"(--action_epsilons|--action_step_sizes) \[([\d.e,-]+)\]")


class Candidate(NamedTuple):
    """Settings by name, in pairs, and the mean number of attack steps a view that they cost; None: the method's own.

    A name with a dot, such as `agent_kwargs.length`, is one of settings by name.
    """

    settings: tuple[tuple[str, Any], ...]
    steps: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that it changes."""
        changed: dict[str, Any] = {}
        for name, value in self.settings:
            field, dot, key = name.partition(".")
            if dot:
                changed.setdefault(field, {})[key] = value
            else:
                changed[field] = value
        return changed


def updates_for(passes: float, steps: float) -> float:
    """Return the number of updates that `passes` passes over a batch's views pay for, with `steps` steps each."""
    return passes / (UPDATE_PASSES + steps)


def budgets(sets: ActionSets, count: int, seed: int) -> list[Candidate]:
    """Draw different constant budgets from the world's sets, by a Sobol sequence; all of them, if there are fewer.

    Budgets that leave the views clean (radius 0, or no steps) are one candidate.
    """
    values = list(sets.by_name.values())
    found: dict[Candidate, None] = {}
    for point in _points(len(values), seed):
        epsilon, steps, step_size = (each[int(at * len(each))] for each, at in zip(values, point, strict=True))
        if not (epsilon and steps):
            epsilon, steps, step_size = sets.epsilons[0], sets.steps[0], sets.step_sizes[0]
        chosen = {"agent": "fixed", "epsilon": epsilon, "steps": int(steps), "step_size": step_size}
        found[Candidate(tuple(chosen.items()), float(steps))] = None
        if len(found) == count:
            break
    return list(found)


def common(worlds: Sequence[ActionSets]) -> ActionSets:
    """Return the sets of what all worlds have.

    Raises:
        ValueError: if they share no radius, no number of steps or no step size.
    """
    shared = {}
    for name, values in vars(worlds[0]).items():
        others = [getattr(sets, name) for sets in worlds[1:]]
        shared[name] = tuple(
            value for value in values if all(any(abs(value - each) < 1e-9 for each in other) for other in others)
        )
        if not shared[name]:
            raise ValueError(f"the worlds have no {name} in common: there is no constant for all of them")
    return ActionSets(**shared)


def curve(sets: ActionSets, radii: int) -> list[Candidate]:
    """Return the budgets of a curve: some radii with every number of steps, and one candidate without an attack.

    The step size is that of `reaching`.

    Args:
        sets: the world's sets.
        radii: number of radii above 0, about evenly among those of the set.

    Raises:
        ValueError: if there is no radius above 0, or no number of steps.
    """
    positive = [epsilon for epsilon in sets.epsilons if epsilon > 0]
    if not positive or not any(sets.steps):
        raise ValueError("a curve of constants needs a radius above 0 in action_epsilons, and steps in action_steps")
    chosen = sorted({positive[round(at)] for at in np.linspace(0, len(positive) - 1, radii)})
    clean = {"agent": "fixed", "epsilon": sets.epsilons[0], "steps": sets.steps[0], "step_size": sets.step_sizes[0]}
    made = [] if sets.steps[0] and sets.epsilons[0] else [Candidate(tuple(clean.items()), float(sets.steps[0]))]
    for steps in (steps for steps in sets.steps if steps):
        for epsilon in chosen:
            size = reaching(sets, epsilon, steps)
            settings = {"agent": "fixed", "epsilon": epsilon, "steps": steps, "step_size": size}
            made.append(Candidate(tuple(settings.items()), float(steps)))
    return made


def reaching(sets: ActionSets, epsilon: float, steps: int) -> float:
    """Return the smallest step size with which the steps add up to 1.25 radii, else the largest."""
    enough = [size for size in sets.step_sizes if size * steps > STRIDE * epsilon - 1e-9]
    return (enough or sets.step_sizes[-1:])[0]


def schedules(sets: ActionSets, steps: int, step_size: float, count: int, seed: int) -> list[Candidate]:
    """Draw different schedules of the radius over `PARTS` equal parts of the training, at constant steps and step size.

    The first candidates are constants, at most half of them, about evenly among the radii.
    """
    shared = (("agent", "schedule"), ("steps", steps), ("step_size", step_size))
    places = np.linspace(0, len(sets.epsilons) - 1, min(len(sets.epsilons), max(1, count // 2)))
    constants = sorted({sets.epsilons[round(place)] for place in places})
    found = {Candidate((*shared, ("schedule", (one,) * PARTS)), float(steps)): None for one in constants}
    for point in _points(PARTS, seed):
        if len(found) == count:
            break
        chosen = tuple(sets.epsilons[int(at * len(sets.epsilons))] for at in point)
        found[Candidate((*shared, ("schedule", chosen)), float(steps))] = None
    return list(found)


def trainings(names: Sequence[str], lr: float, count: int, seed: int) -> list[Candidate]:
    """Draw learning rates and strengths of the augmentations; the first candidate has the world's own values.

    Args:
        names: `lr`, `strength` or both.
        lr: the world's learning rate.
        count: number of candidates.
        seed: seed of the draw.
    """
    made = {Candidate(()): None}
    for point in _points(len(names), seed):
        if len(made) >= count:
            break
        drawn = {
            "lr": lambda at: float(f"{lr * LR_SPAN ** (2 * at - 1):.3g}"),
            "strength": lambda at: round(STRENGTHS[0] + at * (STRENGTHS[1] - STRENGTHS[0]), 3),
        }
        made[Candidate(tuple((name, drawn[name](at)) for name, at in zip(names, point, strict=True)))] = None
    return list(made)


class Chosen(NamedTuple):
    """The settings of an arm by name, and the names of those that its flags give."""

    settings: Mapping[str, Any]
    given: Collection[str]


def arms(base: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]], chosen: Sequence[Chosen]) -> list[Candidate]:
    """Return whole arms as candidates: what they change of the settings of worlds.

    Args:
        base: the settings by name from which the arms were made.
        worlds: the settings of each world by name. A given value counts as a change if it is not that of all.
        chosen: the arms.
    """
    return [Candidate(tuple(_differences(base, worlds, arm))) for arm in chosen]


def _differences(
    base: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]], arm: Chosen
) -> Iterator[tuple[str, Any]]:
    for name, value in arm.settings.items():
        changed = name in arm.given and any(world[name] != value for world in worlds)
        if value == base[name] and not changed:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", _hashable(each)) for key, each in value.items())
        else:
            yield name, _hashable(value)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _points(dimensions: int, seed: int) -> Any:
    """Yield points of a scrambled Sobol sequence in the unit cube."""
    sampler = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    for _ in range(DRAWN // 16):
        yield from sampler.random(16)


def named(settings: Mapping[str, Any]) -> str:
    """Return a candidate's settings as flags for a command line."""
    return with_brief_sets(" ".join(f"--{name} {_text(name, value)}" for name, value in settings.items()))


def with_brief_sets(flags: str) -> str:
    """Return flags with sets of radii and step sizes in 1/255, and one of equal distances by its ends, as
    `"{from: 0/255, to: 48/255, by: 2/255}"`. A set that would not be exact stays as it is."""
    return SET.sub(_brief_set, flags)


def _brief_set(found: re.Match[str]) -> str:
    name, values = found[1], [float(value) for value in found[2].split(",")]
    units = [round(UNIT * value) for value in values]
    if [unit / UNIT for unit in units] != values:
        return found[0]
    if len(units) > 2 and len(steps := set(np.diff(units).tolist())) == 1:
        return f'{name} "{{from: {units[0]}/255, to: {units[-1]}/255, by: {steps.pop()}/255}}"'
    return f"{name} [{','.join(f'{unit}/255' for unit in units)}]"


def _text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_text('epsilon' if name == 'schedule' else '', each) for each in value)}]"
    if name in ("epsilon", "step_size") and abs(value * 255 - round(value * 255)) < 1e-9:
        return f"{round(value * 255)}/255"
    return shlex.quote(as_text(value))
