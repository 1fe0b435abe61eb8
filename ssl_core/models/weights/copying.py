"""Weights of one network copied into another: a student starts as its teacher, a target as the encoder of a file."""

from collections.abc import Collection, Mapping, Sequence

import torch

from astra_gym.ssl_core.models.route_norm import SHARED
from astra_gym.ssl_core.models.target_network import TargetNetwork

BACKBONE = ("arch", "width", "stem", "image_size", "patch_size")
"""Arguments that two networks share if their backbones have the same weights and compute the same."""
PROJECTOR = ("projector", "projector_hidden", "projector_dim")
"""Arguments that two networks share if their projectors do."""


def copy_parts(source: TargetNetwork, target: TargetNetwork, routes: Mapping[str, str], parts: Collection[str]) -> None:
    """Copy weights and batch-norm statistics of `parts` (backbone, neck, projector), which have to fit.

    Args:
        source: network to copy from; it does not change.
        target: network to overwrite.
        routes: for each route of the target, the route of the source whose batch norms it gets.
        parts: names of the copied parts.
    """
    state = source.state_dict()
    for name, value in target.state_dict().items():
        if name.partition(".")[0] in parts:
            head, by_route, tail = name.partition(".by_route.")
            own, _, leaf = tail.partition(".")
            place = name if not by_route or own == SHARED else f"{head}{by_route}{routes[own]}.{leaf}"
            value.copy_(state[place])


def copy_routes(source: TargetNetwork, target: TargetNetwork, route: str) -> None:
    """Copy one route of `source` into `target`: each route of the target gets that route's batch norms.

    A student starts as its teacher in this way (DeACL, DAQ-SDP). The backbone and the neck are copied, batch-norm
    statistics included. The projector is copied only if both have the same kind and sizes.

    Args:
        source: network to copy from; it does not change.
        target: network to overwrite; it may have other routes and another projector.
        route: a route of the source.

    Raises:
        ValueError: if the source has no such route, or the networks differ in backbone, neck or input normalization;
            nothing is copied then.
    """
    source.check_route(route)
    different = [*unlike(source, target, (*BACKBONE, "neck")), *unlike_normalization(source, target)]
    if different:
        said = versus(source, target, different)
        raise ValueError(f"the weights of another network do not fit: {said}: build both alike")
    parts = ("backbone", "neck") if unlike(source, target, PROJECTOR) else ("backbone", "neck", "projector")
    copy_parts(source, target, dict.fromkeys(target.routes, route), parts)


def copy_projector(source: TargetNetwork, target: TargetNetwork, route: str) -> None:
    """Copy the projector of `source` into `target`: each route of the target gets that route's batch norms.

    Raises:
        ValueError: if the source has no such route or no projector, or the networks differ in its kind or sizes.
    """
    source.check_route(route)
    if source.arguments["projector"] == "none":
        raise ValueError("it has no projector (projector none): take one that has")
    if different := unlike(source, target, PROJECTOR):
        flags = " ".join(f"--{name} {source.arguments[name]}" for name in different)
        raise ValueError(f"its projector is another: {versus(source, target, different)}: give {flags}")
    copy_parts(source, target, dict.fromkeys(target.routes, route), ("projector",))


def unlike(source: TargetNetwork, target: TargetNetwork, names: Sequence[str]) -> list[str]:
    """Return those of the named arguments in which two networks differ."""
    return [name for name in names if source.arguments.get(name) != target.arguments.get(name)]


def unlike_normalization(source: TargetNetwork, target: TargetNetwork) -> list[str]:
    """Return those of "mean" and "std" in which the input normalizations of two networks differ."""
    # compared as buffers, since a file may hold the arguments in another precision
    buffers = {name: [each.get_buffer(name).float().cpu() for each in (source, target)] for name in ("mean", "std")}
    return [name for name, (theirs, ours) in buffers.items() if not torch.equal(theirs, ours)]


def versus(source: TargetNetwork, target: TargetNetwork, names: Sequence[str]) -> str:
    """Return the named arguments of two networks in words."""
    there, here = source.arguments, target.arguments
    return "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names)
