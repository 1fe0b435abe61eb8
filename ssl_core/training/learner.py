"""The learner of the target network: the only owner of its optimizer, its modes and its batch-norm routes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from astra_gym.ssl_core.attacks.early_stopping import EarlyStop, early_stopped_pgd
from astra_gym.ssl_core.attacks.free import FreePerturbations
from astra_gym.ssl_core.attacks.pgd import Attacked, AttackReport, Budget, Encode, Objective, Start, pgd, within
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack
from astra_gym.ssl_core.attacks.weight_perturbation import perturbed
from astra_gym.ssl_core.distributed.spreading import spread
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.models.ema import ema_update
from astra_gym.ssl_core.models.gradcache import ChunkedNetwork
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.models.weights.start import StartedFrom
from astra_gym.ssl_core.training.non_finite import NonFiniteLossError, checked_losses
from astra_gym.ssl_core.training.trained_networks import TrainedNetworks
from astra_gym.ssl_core.utils.device import on_the_host
from astra_gym.ssl_core.utils.hashing import digest
from astra_gym.ssl_core.utils.import_path import described
from astra_gym.ssl_core.utils.training_plan import Moment

GRADIENTS = "the attack's gradients"
SHAPES = 64
"""Maximum number of different batch sizes in the attacks of a run. Preparing a small network for a new size costs as
much as an iteration; rounding sizes up adds about 1 / SHAPES of the work. A GPU computes in blocks of 64 anyway."""


class TargetLearner(TrainedNetworks):
    """Owner of the target network, of everything trained or kept with it, and of the optimizer.

    Args:
        network: the target network, on its final device.
        method: the self-supervised method.
        optimizer: optimizer of the parameters of the network and of the heads. A group with `constant_lr` keeps its
            rate, the others follow the schedule.
        schedule: learning rate of update k (0-based).
        update_chunks: number of chunks in which an update runs over a batch, to store fewer activations. With more than
            one, each has its own batch-norm statistics (ghost batch norm), see `astra_gym.ssl_core.models.gradcache`.
        heads: modules trained together with the network (`Method.make_heads`).
        others: networks without gradient, by name: "momentum", "teacher", "initial" (`NetworkTraits.others`).
        teacher_route: route of every call of the teacher, whatever route a method names.
        moment: maps k to the position in the run after k updates; by default `step` is k, in epoch 0 of 1, at progress
            0.
        start: start of the attacks; None: the method's (`AttackTraits.start_radius`).
    """

    def __init__(
        self,
        network: TargetNetwork,
        method: Method,
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        update_chunks: int = 1,
        *,
        heads: Mapping[str, nn.Module] | None = None,
        others: Mapping[str, TargetNetwork] | None = None,
        teacher_route: str = "normal",
        moment: Callable[[int], Moment] = Moment,
        start: Start | None = None,
    ) -> None:
        super().__init__(network, method, heads, others, teacher_route, moment)
        self.optimizer = optimizer
        self.schedule = schedule
        self.update_chunks = update_chunks
        self.start = start
        self.free = FreePerturbations()
        self.origin: StartedFrom | None = None
        """What the network's weights began with; None if they were random, or are those of a saved state."""
        self._watched: dict[str, Tensor] = {}

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.schedule(self.step)

    def objective(self, views: Tensor) -> Objective:
        """The attack's objective for a batch of views (v, 3, h, w), on the current weights. The reference views are
        encoded in the attack's mode, or in its `reference_mode`; batch-norm statistics do not change."""
        with self._comparing(self.method.attack.reference_mode) as networks:
            return self.method.objective_for(networks, views)

    def encode_clean(self, views: Tensor) -> Encoded:
        """Encode the clean views, before the attack, to features and the objective's embeddings. Both are on clean
        routes and without gradient; features are in eval mode, embeddings in the attack's mode. Batch-norm statistics
        do not change.

        Args:
            views: all views of the batch, (v, 3, h, w).
        """
        with frozen(self._parts), torch.no_grad():
            images = self.method.attacked(views)
            rows = torch.arange(len(images))
            found = self.method.encoded(self._folded(), images, rows, attacked=False)
        if self.method.attack.mode == "eval":
            return found
        with self._comparing() as networks:
            embeddings = self.method.encoded(networks, images, rows, attacked=False).embeddings
        return Encoded(found.features, embeddings)

    def watch(self, name: str, values: Tensor) -> None:
        """Let the next update check that these values are finite, as it checks its loss, with the same error. Nothing
        waits for a GPU until then."""
        self._watched[name] = torch.stack(torch.aminmax(values.detach()))

    def watched_gradients(self) -> Tensor:
        """The `watch` tensor of `pgd` for all attacks up to the next update."""
        return self._watched.setdefault(GRADIENTS, torch.zeros((), device=self.device))

    def attack(
        self,
        views: Tensor,
        budget: Budget,
        generator: torch.Generator,
        objective: Objective | None = None,
        stop: EarlyStop | None = None,
        report: AttackReport | None = None,
    ) -> Attacked:
        """Run the method's attack on the views within the budget. Weights do not change. Running statistics change only
        in train mode, with the pass of every step.

        Args:
            views: all views of a batch, (v, 3, h, w) in [0, 1].
            budget: an entry for each view that is attacked.
            generator: random generator of the start, on the learner's device.
            objective: the result of `objective(views)` on the current weights, if known.
            stop, report: as in `early_stopped_pgd`; without a stop every view takes its steps.
        """
        run = pgd if stop is None else partial(early_stopped_pgd, stop=stop)
        return self._begun(partial(run, report=report), views, budget, generator, objective)

    def stepwise(
        self,
        views: Tensor,
        epsilon: Tensor,
        generator: torch.Generator,
        objective: Objective | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> StepwiseAttack:
        """Begin the method's attack on the views, for the caller to advance while weights do not change.

        Args:
            views, generator, objective: as in `attack`.
            epsilon: (n,) radius of each view that is attacked, on the host.
            state: state of such an attack on these views and weights, which continues it.

        Raises:
            ValueError: as `check_stepwise`.
        """
        self.check_stepwise()
        run = partial(StepwiseAttack, within=self._under_attack, state=state)
        return self._begun(run, views, epsilon, generator, objective)

    def check_stepwise(self) -> None:
        """Raise a ValueError if the method has no attack, or one that needs the whole batch at each step."""
        if not self.method.attack.has_steps or self.method.attack.mode == "train":
            raise ValueError(
                f"{type(self.method).__name__} has no attack whose views may stop one by one: expected a method that "
                "attacks in eval mode, such as acl or astra"
            )

    def _begun(
        self,
        run: Callable[..., Any],
        views: Tensor,
        extent: Budget | Tensor,
        generator: torch.Generator,
        objective: Objective | None,
    ) -> Any:
        """Call a kind of attack with the method's encoder, objective and start."""
        images = self.method.attacked(views)
        radius = self.method.attack.start_radius
        objective = self.objective(views) if objective is None else objective
        training = self.method.attack.mode == "train"
        # batch norm in train mode couples the images of a batch, so every iteration encodes the whole batch
        granularity = max(64 if self.device.type == "cuda" else 1, -(-len(images) // SHAPES))
        passes = int(extent.steps.max()) if isinstance(extent, Budget) and len(extent) else 1
        with self._under_attack():
            encode = self.method.encode(self.plain() if training else self._folded(passes))
            if training:
                encode = self._tracked_by_steps(encode)
            return run(
                encode,
                objective,
                images,
                extent,
                generator=generator,
                start=self.start or ("uniform" if radius is None else within(radius)),
                granularity=len(images) if training else granularity,
                watch=self.watched_gradients(),
            )

    def _tracked_by_steps(self, encode: Encode) -> Encode:
        """Make an encoder whose passes without gradient keep the statistics, since the authors make no such passes."""

        def stepping(images: Tensor, rows: Tensor) -> Tensor:
            with nullcontext() if torch.is_grad_enabled() else self.untracked():
                return encode(images, rows)

        return stepping

    def carry(self, views: Tensor, budget: Budget) -> Attacked:
        """Take the next step of a free attack: move the carried perturbations by the last update's gradient, and add
        them to these views (`FreePerturbations`).

        Args:
            views: all views of a batch, (v, 3, h, w) in [0, 1].
            budget: an entry for each attacked view, on the host.

        Returns:
            The attacked images, and their embeddings in the attack's mode; statistics do not change.
        """
        moved = self.free.move(self.method.attacked(views), budget, self.moment.replay)
        rows = torch.arange(len(moved))
        with self._comparing() as networks:
            return Attacked(moved, self.method.encode(networks)(moved, rows))

    def update(
        self, views: Tensor, adversarial: Tensor | None, along: dict[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Take one optimizer step on a batch. It waits for a GPU only once, when the whole update is queued.

        Args:
            views: all views of the batch, (v, 3, h, w).
            adversarial: the attacked views, (n, 3, h, w); None without an attack.
            along: tensors by name, replaced by host copies when the update waits for the GPU.

        Returns:
            The mean of each named loss term, and "total".

        Raises:
            NonFiniteLossError: if the loss, watched values (`watch`), or the new weights or batch-norm statistics are
                not finite. On the CPU the loss is checked before the weights change, on a GPU after it.
        """
        moment, at_once = self.moment, self.device.type == "cpu"
        self.train()
        if self.method.attack.free and adversarial is not None:
            adversarial = adversarial.detach().requires_grad_()
        chunked = None
        if self.update_chunks > 1:
            chunked = ChunkedNetwork(self.network, self.update_chunks, spread(self.network, self.ranks))
        networks = self.plain(chunked)
        with self._perturbed(moment, views, adversarial):
            terms = self.method.losses(networks, views, adversarial)
            weights = self.method.weights_at(moment)
            kind = type(self.method).__name__
            if not isinstance(weights, Mapping):
                raise ValueError(f"weights of {kind} are {described(weights)}: expected numbers by name, as a property")
            if not isinstance(terms, dict) or terms.keys() != weights.keys():
                found = ", ".join(terms) if isinstance(terms, dict) else described(terms)
                raise ValueError(
                    f"losses of {kind} are {found}: expected the terms of its weights, {', '.join(weights)}"
                )
            for name, values in terms.items():
                if not isinstance(values, Tensor) or not values.is_floating_point():
                    found = str(values.dtype) if isinstance(values, Tensor) else described(values)
                    raise ValueError(f"losses of {kind} give {name} as {found}: expected a tensor of floats")
            means = {name: values.mean() for name, values in terms.items()}
            total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
            watched, self._watched = self._watched, {}
            ends = [value.to(total.dtype).sum() for value in watched.values()]
            figures = torch.stack([*means.values(), total, *ends]).detach()
            read = [*means, "total"], list(watched)
            losses = checked_losses(figures.tolist(), *read, self.step + 1) if at_once else {}
            for group in self.optimizer.param_groups:
                if not group.get("constant_lr"):
                    group["lr"] = self.lr
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            if chunked is not None:
                chunked.backward()
            self.complete(self._trained(), (weight.grad for weight in self._trained()))
        if self.method.attack.free and adversarial is not None:
            self.free.follow(adversarial.grad)
        for name in self.method.resting_heads(moment):
            # without a gradient, neither weight decay nor the optimizer's state touches them
            self.heads[name].zero_grad(set_to_none=True)
        if self.method.networks.momentum_first:
            self._average(moment)
        self.optimizer.step()
        if not self.method.networks.momentum_first:
            self._average(moment)
        # this check also finds non-finite gradients, while the last saved state is still good. An attack would not find
        # them: a processor's fused ReLU may turn NaN into 0
        state = [value for value in self._parts.state_dict().values() if value.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(state))
        if not at_once:
            figures, norms, *brought = on_the_host(figures, norms, *(along or {}).values())
            losses = checked_losses(figures.tolist(), *read, self.step + 1)
            (along or {}).update(zip(along or {}, brought, strict=True))
        if not bool(norms.isfinite().all()):
            raise NonFiniteLossError(f"the weights after update {self.step + 1} are not finite; its loss was {losses}")
        self.step += 1
        return losses

    def _trained(self) -> Iterator[Tensor]:
        yield from self.network.parameters()
        yield from self.heads.parameters()

    def _average(self, moment: Moment) -> None:
        """Move the network "momentum" and averaged heads toward the trained ones."""
        if "momentum" in self.others:
            share = self.method.momentum(moment)
            ema_update(self.others["momentum"], self.network, share)
            for name in self.method.networks.averaged_heads:
                ema_update(self.heads[f"momentum_{name}"], self.heads[name], share)

    def _perturbed(self, moment: Moment, views: Tensor, adversarial: Tensor | None) -> AbstractContextManager[None]:
        gamma = self.method.weight_perturbation(moment)
        if gamma == 0 or adversarial is None:
            return nullcontext()
        modules, networks = nn.ModuleList([self.network, self.heads]), self.plain()
        return perturbed(
            modules, lambda: self.method.perturbation_loss(networks, views, adversarial), gamma, self.complete
        )

    def numbers(self) -> dict[str, Any]:
        """All values that have to be finite for training to continue, by name; not copied. A teacher does not change
        and is left out; watched values that were not read yet are included."""
        others = {name: self.others[name].state_dict() for name in self.others if name != "teacher"}
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "heads": self.heads.state_dict(),
            "others": others,
            "tables": self.tables,
            "carried": self.free.numbers(),
            "watched": self._watched,
        }

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, number of updates; if present heads, moving averages, tables and carried perturbations.

        A teacher does not change, and its weights are in a separate file: only its digest is stored.
        """
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        beside = {
            "heads": self.heads.state_dict(),
            "others": {name: self.others[name].state_dict() for name in self.others if name != "teacher"},
            "tables": dict(self.tables),
            "carried": self.free.state_dict(),
            "teacher": digest(self.others["teacher"]) if "teacher" in self.others else "",
            "teacher_precision": self._other("teacher").precision if "teacher" in self.others else "",
        }
        return state | {name: value for name, value in beside.items() if value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`; raise a ValueError if the teacher is another one now."""
        if "teacher" in self.others and state.get("teacher") != digest(self.others["teacher"]):
            raise ValueError("the teacher is another one than before: go on with the file that the run began with")
        self._watched = {}
        if "teacher" in self.others:
            teacher = self._other("teacher")
            # in states without this entry the teacher computed in the precision of its own run
            teacher.precision = state.get("teacher_precision", teacher.arguments["precision"])
        self.network.load_state_dict(state["network"])
        self.heads.load_state_dict(state.get("heads", {}))
        for name, other in state.get("others", {}).items():
            self.others[name].load_state_dict(other)
        for name, value in state.get("tables", {}).items():
            self.tables[name] = value.to(self.device)
        self.free.load_state_dict(state.get("carried", {}), self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
