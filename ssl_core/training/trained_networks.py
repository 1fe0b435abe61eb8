"""The networks of a training and the modes in which they run."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.distributed.spreading import spread
from astra_gym.ssl_core.methods import Method, Network, Networks
from astra_gym.ssl_core.methods.parts import on_route
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment


def _check_averages(method: Method, heads: Iterable[str]) -> None:
    """Raise a ValueError if a method averages a head that it does not make, or has a moving average without a decay."""
    own, kind = list(heads), type(method)
    if strange := [name for name in method.networks.averaged_heads if name not in own]:
        raise ValueError(
            f"averaged_heads of {kind.__name__} has {shown(strange[0])}: expected heads that it makes, "
            + (", ".join(own) or "none")
        )
    if "momentum" in method.networks.others and getattr(method.momentum, "__func__", None) is Method.momentum:
        raise ValueError(f'{kind.__name__} has the network "momentum" and no method `momentum`: define its decay')


class TrainedNetworks:
    """The target network with everything trained or kept beside it, in the modes in which a method compares views.

    Args:
        network, method, heads, others, teacher_route, moment: as in
            `astra_gym.ssl_core.training.learner.TargetLearner`.
    """

    def __init__(
        self,
        network: TargetNetwork,
        method: Method,
        heads: Mapping[str, nn.Module] | None,
        others: Mapping[str, TargetNetwork] | None,
        teacher_route: str,
        moment: Callable[[int], Moment],
    ) -> None:
        self.network = network
        self.method = method
        self.heads = nn.ModuleDict(dict(heads or {}))
        _check_averages(method, self.heads)
        for name in method.networks.averaged_heads:
            self.heads[f"momentum_{name}"] = copy.deepcopy(self.heads[name]).requires_grad_(False)
        self.others = nn.ModuleDict(dict(others or {}))
        for other in self.others.values():
            other.requires_grad_(False)
        if method.networks.shares_projector:
            network.projector.requires_grad_(False)
        self.teacher_route = teacher_route
        self.tables: dict[str, Tensor] = {}
        """Tensors from `Method.make_tables`."""
        self.moment_at = moment
        self.step = 0
        """Number of updates made."""
        self.ranks = current()
        """The ranks that train these networks, each with a copy."""
        self.device = next(network.parameters()).device
        self._parts = nn.ModuleList([network, self.heads, self.others])

    @property
    def moment(self) -> Moment:
        """Position in the run."""
        return self.moment_at(self.step)

    @property
    def encoder(self) -> TargetNetwork:
        """The network that is evaluated and saved."""
        chosen = self.method.networks.evaluated
        return self.network if chosen == "target" else self._other(chosen)

    def _other(self, name: str) -> TargetNetwork:
        found = self.others[name]
        if not isinstance(found, TargetNetwork):
            raise TypeError(f"{name} is a {type(found).__name__}: expected a TargetNetwork")
        return found

    def _folded(self, passes: int = 1) -> Networks:
        """All networks in eval mode with folded batch norm, for so many passes; to be used while `frozen`."""
        others: dict[str, Network] = {name: FoldedNetwork(self._other(name), passes) for name in self.others}
        return self._networks(FoldedNetwork(self.network, passes), others)

    def plain(self, target: Network | None = None) -> Networks:
        """All networks, not folded; `target`, if given, stands in for the target network, on all ranks alike."""
        return self._networks(self.network, {name: self._other(name) for name in self.others}, target)

    def _networks(self, target: Network, others: dict[str, Network], instead: Network | None = None) -> Networks:
        # only passes of networks are divided among ranks. Heads are small, and all ranks compute them
        others = {name: spread(other, self.ranks) for name, other in others.items()}
        if "teacher" in others:
            others["teacher"] = on_route(others["teacher"], self.teacher_route)
        return Networks(
            instead or spread(target, self.ranks), dict(self.heads.items()), others, self.tables, self.moment
        )

    def make_tables(self, images: Tensor, streams: Streams) -> None:
        """Make the method's tables, if it has any, from the training images, uint8 (n, 3, h, w).

        Args:
            streams: random streams; only "tables" is used.
        """
        if type(self.method).make_tables is Method.make_tables:
            return
        with frozen(self._parts), torch.no_grad():
            made = self.method.make_tables(self._folded(), images, streams["tables"])
        self.tables = {name: value.to(self.device) for name, value in made.items()}

    def train(self) -> None:
        """Put all networks in the mode of an update."""
        self.network.train()
        if self.method.networks.shares_projector:
            self.network.projector.eval()
        self.heads.train()
        for name in self.others:
            # a moving average has its own statistics, those of frozen networks do not change
            self.others[name].train(name == "momentum")

    @contextmanager
    def _under_attack(self, mode: str | None = None) -> Iterator[None]:
        """Put target and heads in a mode, by default the attack's, the others in eval mode, without gradients of
        weights."""
        training = (mode or self.method.attack.mode) == "train"
        with frozen(self.network, training), frozen(self.heads, training), frozen(self.others):
            yield

    @contextmanager
    def _comparing(self, mode: str | None = None) -> Iterator[Networks]:
        """Yield all networks for encoding the reference of attacked views: in a mode, by default the attack's, without
        gradient or change of batch-norm statistics."""
        training = (mode or self.method.attack.mode) == "train"
        # in eval mode statistics do not change anyway
        with self._under_attack(mode), self.untracked() if training else nullcontext(), torch.no_grad():
            yield self.plain() if training else self._folded()

    def agreed(self, budget: Budget) -> Budget:
        """Return the budget that all ranks attack within, of the agent of rank 0.

        Raises:
            RanksDifferError: if budgets differ on CPUs. On GPUs, which add in any order, copies of an agent may come to
                differ in last digits, and then in a choice.
        """
        if self.ranks.alone:
            return budget
        parts = torch.stack([part.double().cpu() for part in (budget.epsilon, budget.step_size, budget.steps)])
        if self.device.type == "cpu":
            self.ranks.check_same(f"budgets of update {self.step + 1}", parts.numpy().tobytes())
            return budget
        epsilon, step_size, steps = self.ranks.gather(parts.to(self.device))[0].cpu()
        return Budget(
            epsilon=epsilon.to(budget.epsilon.dtype), step_size=step_size.to(budget.step_size.dtype), steps=steps.long()
        )

    def complete(self, weights: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
        """Make a rank's gradients those of the whole batch, in place: of the network they are a part, to be added up,
        of heads the whole. All ranks then have the same bits. Without other ranks the arguments are not read."""
        if self.ranks.alone:
            return
        divided = {id(weight) for weight in self.network.parameters()}
        parts = []
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                parts.append(gradient if id(weight) in divided else gradient.div_(self.ranks.size))
        self.ranks.add_up(parts)

    def untracked(self) -> AbstractContextManager[None]:
        """Context for measurements: attacks in train mode do not change the running statistics."""
        return Untracked(self._parts)
