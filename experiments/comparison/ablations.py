"""The ablations by name: arms that switch the parts of a method on and off, and the pairs that are tested."""

from collections.abc import Mapping
from dataclasses import dataclass

from astra_gym.experiments.stats import Pairs


@dataclass(frozen=True)
class Ablation:
    """Arms of one method, each with another choice of its parts.

    Args:
        method: name of the method.
        arms: flags of `train_agent.py` by label. The flags are shell words.
        tests: pairs of labels that are tested: the whole method against it without one or more parts.
    """

    method: str
    arms: Mapping[str, str]
    tests: Pairs

    @property
    def texts(self) -> list[str]:
        """The arms as `LABEL=FLAGS`, as `--arm` takes them."""
        return [f"{label}={flags}" for label, flags in self.arms.items()]


ABLATIONS: Mapping[str, Ablation] = {
    "astra": Ablation(
        "astra",
        {
            "acl": "--agent fixed --method_kwargs.mixed_weight 0",
            "acl-mixed": "--agent fixed",
            "acl-strategy": "--agent reinforce --method_kwargs.mixed_weight 0",
            "astra": "--agent reinforce",
        },
        (("astra", "acl-strategy"), ("astra", "acl-mixed"), ("astra", "acl")),
    ),
    "daq-sdp": Ablation(
        "daq-sdp",
        {"daq": "--agent fixed --method_kwargs.gamma 0", "daq-sdp": "--agent fixed"},
        (("daq-sdp", "daq"),),
    ),
}
"""ASTrA: the mixed loss and the strategy, each on and off (the authors' table of components: ACL, with either, with
both). DAQ-SDP: the perturbation of the weights (Zhang et al., NeurIPS 2024), on and off."""
