"""What a world reports of its attacks on request, and when it stops them early."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from astra_gym.envs.api.protocol import REPORTS
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.early_stopping import EarlyStop
from astra_gym.ssl_core.attacks.pgd import AttackReport, Budget
from astra_gym.ssl_core.utils.registry import pick


class AttackReports:
    """The reports of one world; none at first, which costs nothing.

    Args:
        settings: settings of the world.

    Attributes:
        requested: names of `REPORTS`.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.method, self.attack = settings.method.make(), settings.attack
        no_steps = not self.method.attack.has_steps
        self._lacking = {
            **dict.fromkeys(("attack/slope", "attack/gain"), (no_steps, "its method has no attack steps of its own")),
            "attack/retrieved": (
                not self.method.retrieves,
                "its method does not contrast attacked views with each other",
            ),
            "attack/stopped": (self.attack.attack_stop is None, "it never does: make it with attack_stop='retrieval'"),
        }
        self.requested: set[str] = set()

    def request(self, *names: str) -> None:
        """Report these values from now on, see `astra_gym.envs.api.protocol.ReportingEnv`.

        Raises:
            ValueError: if a name is unknown, or the world has no such value.
        """
        for name in names:
            what = pick(name, REPORTS, "report")
            lacks, why = self._lacking[name]
            if lacks:
                raise ValueError(f"the world cannot report {name} ({what}): {why}")
        self.requested |= set(names)

    def begin(self, progress: float) -> tuple[EarlyStop | None, AttackReport | None]:
        """Return the stop and the record of an attack at a share of the run in [0, 1], None where there is none."""
        stop = None
        if self.attack.attack_stop is not None:
            stop = EarlyStop(succeeds=lambda z: ~self.method.retrieved(z), further=self.attack.further_steps(progress))
        return stop, AttackReport() if stop is not None or "attack/slope" in self.requested else None

    def of_losses(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what was requested of an attack's named reward terms, (n,) each."""
        return {"attack/gain": terms["adversarial"] - terms["clean"]} if "attack/gain" in self.requested else {}

    def of(self, report: AttackReport | None, budget: Budget, z: Tensor) -> tuple[Budget, dict[str, Tensor]]:
        """Return the budget with the steps really taken, and what was requested, (n,) each on the device of z.

        Args:
            report: the record of the attack, if there is one.
            budget: n entries, as it was chosen.
            z: embeddings (n, ...) of the attacked views.
        """
        found: dict[str, Tensor] = {}
        if "attack/retrieved" in self.requested:
            found["attack/retrieved"] = self.method.retrieved(z)
        if report is None:
            return budget, found
        if "attack/slope" in self.requested:
            found["attack/slope"] = report.slopes
        if "attack/stopped" in self.requested:
            found["attack/stopped"] = (report.steps < budget.steps).to(z.device)
        return replace(budget, steps=report.steps), found
