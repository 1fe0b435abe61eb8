"""The processes that train one network together, and what they tell each other."""

import copy
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from astra_gym.ssl_core.utils.clock import Clock
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import brief, shown
from astra_gym.ssl_core.utils.stopping import deferring

T = TypeVar("T")
TIMEOUT = "ASTRA_RANK_TIMEOUT"
"""Environment variable: seconds for which a rank waits for the others in a training, 1800 by default."""
UNLIMITED = timedelta(days=365)
"""Time for which ranks wait for each other while each does work of its own, in effect without a limit."""
POLL = 0.05
"""Seconds between two looks at whether rank 0 has said something."""
STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of a process that torchrun, or a batch system's script, has started as one of several."""


class RankLostError(RuntimeError):
    """Error for a rank that no longer answers."""


class RanksDifferError(ValueError):
    """Error for ranks whose values should be the same and are not."""


class Ranks:
    """The processes ("ranks") that train one network together; by default this process alone.

    Every rank holds the whole training: weights, agent, batch and random streams are the same on all. Only the passes
    of the networks are divided (`astra_gym.ssl_core.distributed.spreading`). All ranks must call the methods here
    equally often and in the same order. With one process each is the identity.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        store: the processes' common store; None for a process that was started alone.
        timeout: seconds after which a rank that waits raises a `RankLostError`, unless the others work for themselves.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None, timeout: float = 1800.0) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self._store = store
        self._calls = 0
        self.spreads = False
        """Whether the network that runs now has a part of the rows: batch norm then counts those of all ranks."""
        self.clock = Clock()
        """Time in which this process waited for others and exchanged values with them; on a GPU only the calls."""

    @property
    def alone(self) -> bool:
        """Whether this process was not started as one of several."""
        return self._store is None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def leave(self) -> "Ranks":
        """Let this process work alone from now on, and return the group that it has left."""
        left = copy.copy(self)
        self.rank, self.size, self._store = 0, 1, None
        return left

    def note_end(self, status: int) -> None:
        """Tell the other ranks that this one ends by an error that it has reported itself. It waits for nobody."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set("ended", str(status))

    def noted_end(self) -> int | None:
        """Return the exit status of a rank that has reported an error; None if none has."""
        if self._store is None:
            return None
        with suppress(RuntimeError):
            return int(self._store.get("ended")) if self._store.check(["ended"]) else None
        return None

    def note_last_word(self) -> None:
        """As rank 0, tell the others that it has saved and printed all it will. It waits for nobody."""
        if self.first and self._store is not None:
            with suppress(RuntimeError):
                self._store.set("last word", "said")

    def await_last_word(self) -> None:
        """As another rank, wait until rank 0 has noted its last word, or is gone.

        torchrun stops the others as soon as a rank has ended with an error or by a signal.
        """
        while not self.first and not self._is_said("last word"):
            time.sleep(POLL)

    def call(self) -> None:
        """As rank 0, tell the others that it needs them. It waits for nobody."""
        if self._store is not None:
            self._store.set(f"call {self._calls}", "")
            self._calls += 1

    def is_called(self, number: int) -> bool:
        """As another rank, wait for a call of rank 0, counted from 0; return false if it has ended instead.

        There is no limit: rank 0 may work for hours before it needs others.
        """
        while not (called := self._is_said(f"call {number}")) and not self._is_said("last word"):
            time.sleep(POLL)
        return called and self._store is not None

    def _is_said(self, word: str) -> bool:
        """Return whether the store has a word, or is gone with the rank or the program that keeps it."""
        try:
            # not by the store's own `wait`, which no signal interrupts
            return self._store is None or self._store.check([word])
        except RuntimeError:
            self._store = None
            return True

    @contextmanager
    def spreading(self, spreads: bool = True) -> Iterator[None]:
        """Set `spreads` while entered."""
        before, self.spreads = self.spreads, spreads
        try:
            yield
        finally:
            self.spreads = before

    def share(self, n: int, rank: int | None = None) -> slice:
        """Return a rank's part of n rows, by default this rank's: consecutive, as equal as possible, maybe empty."""
        rank = self.rank if rank is None else rank
        size, larger = divmod(n, self.size)
        begin = rank * size + min(rank, larger)
        return slice(begin, begin + size + (rank < larger))

    def gather(self, values: Tensor) -> Tensor:
        """Return the values (...) of all ranks, of one shape, as (size, ...)."""
        if self.alone:
            return values[None]
        found = values.new_empty((self.size, *values.shape))
        given = values.detach().contiguous()
        self._together("gather", partial(dist.all_gather, list(found.unbind()), given))
        return found

    def gather_rows(self, own: Tensor, n: int) -> Tensor:
        """Return all n rows (n, ...) from every rank's `share` of them."""
        if self.alone:
            return own
        longest = -(-n // self.size)
        if len(own) < longest:
            # collectives take equal shapes; at most one row is missing
            own = torch.cat([own, own.new_zeros((longest - len(own), *own.shape[1:]))])
        found = self.gather(own)
        if n % self.size == 0:
            return found.flatten(0, 1)
        shares = (self.share(n, rank) for rank in range(self.size))
        return torch.cat([part[: each.stop - each.start] for part, each in zip(found, shares, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the values of all ranks, added in the order of the ranks."""
        return self.gather(values).sum(dim=0)

    def add_up(self, parts: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one exchange for each type."""
        if self.alone:
            return
        for dtype in dict.fromkeys(part.dtype for part in parts):
            alike = [part for part in parts if part.dtype == dtype]
            flat = torch.cat([part.flatten() for part in alike])
            self._together("add up", partial(dist.all_reduce, flat))
            for part, total in zip(alike, flat.split([part.numel() for part in alike]), strict=True):
                part.copy_(total.view_as(part))

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all ranks."""
        return int(self._numbers(number).max())

    def text_of_first(self, text: str) -> str:
        """Return rank 0's text."""
        if self.alone:
            return text
        given = text.encode()
        length = int(self._numbers(len(given))[0])
        values = torch.tensor(list(given if self.first else bytes(length)), dtype=torch.uint8, device=_host())
        return bytes(self.gather(values)[0].tolist()).decode()

    def object_of_first(self, value: Any) -> Any:
        """Return rank 0's value, which is pickled; wait for it without a limit, but not for a rank that has ended."""
        found = [value]
        if not self.alone:
            send = partial(dist.broadcast_object_list, found, group=self._patient)
            self._together("send", send, limited=False)
        return found[0]

    def objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which are pickled; wait as `object_of_first` does."""
        found: list[Any] = [value] * self.size
        if not self.alone:
            collect = partial(dist.all_gather_object, found, value, group=self._patient)
            self._together("collect", collect, limited=False)
        return found

    @cached_property
    def _patient(self) -> Any:
        """The ranks' group without a limit, by gloo, which notices at once that a process has ended."""
        # a rank that comes waits for all, deaf to signals: none may turn back between the two
        with deferring():
            # first an exchange with a limit, since a rank may be gone already
            self._numbers(0)
            return self._together("meet", partial(dist.new_group, backend="gloo", timeout=UNLIMITED))

    def check_same(self, what: str, values: bytes) -> None:
        """Raise a RanksDifferError, which names `what`, unless the values are the same on all ranks."""
        if self.alone:
            return
        digests = self._numbers(int.from_bytes(hashlib.sha256(values).digest()[:7], "little"))
        other = (digests != digests[0]).nonzero()
        if len(other):
            raise RanksDifferError(
                f"{what} of rank {int(other[0])} differ from those of rank 0: all ranks need the same flags, code, "
                "files and kind of processor, and an agent that draws from its seed alone"
            )

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no other rank has said this yet. It waits for nobody."""
        if self._store is None:
            return True
        try:
            return self._store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
        except RuntimeError:
            # the rank that keeps the store is gone
            return True

    def _numbers(self, number: int) -> Tensor:
        return self.gather(torch.tensor(number, device=_host())).cpu()

    def _together(self, what: str, exchange: Callable[[], T], limited: bool = True) -> T:
        with self.clock.running():
            try:
                return exchange()
            except RuntimeError as error:
                # gloo's first sentence, without the place in its source
                reason = brief(re.sub(r"\[[^]]*\]", "", str(error)).partition(". ")[0], 80)
                waited = f", or has waited {self.timeout:g} s for it" if limited else ""
                raise RankLostError(
                    f"rank {self.rank} of {self.size} lost another rank{waited} ({what}: {reason})"
                ) from error


def _host() -> str:
    """Return the device on which plain values are exchanged: NCCL takes a GPU's only."""
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


_current = Ranks()


def current() -> Ranks:
    """Return the ranks of which this process is one."""
    return _current


def _timeout() -> float:
    given = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    check_number(TIMEOUT, seconds, above=True, expected=f"a positive number of seconds, not {shown(given)}")
    return seconds


def is_one_of_several() -> bool:
    """Return whether this process was started as one of several (`STARTED`)."""
    return all(name in os.environ for name in STARTED)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other ranks if this process was started as one of several: inside, `current` are these.

    GPUs speak by NCCL, if each rank of a machine has its own; all else by gloo.

    Raises:
        RankLostError: if the others do not come.
        ValueError: if the environment variable `TIMEOUT` is no positive number, or one of `STARTED` is no number.
    """
    if not is_one_of_several():
        yield current()
        return
    global _current
    seconds = _timeout()
    limit = timedelta(seconds=seconds)
    here = int(os.environ.get("LOCAL_RANK", "0"))
    own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")) and dist.is_nccl_available()
    if torch.cuda.is_available():
        torch.cuda.set_device(here % torch.cuda.device_count())
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        # torchrun's store outlives a restart, with the addresses of ranks that are gone
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if torch.cuda.is_available() and own_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankLostError(
            f"the ranks did not meet at {place} (MASTER_ADDR, MASTER_PORT) within {seconds:g} s: {brief(error, 170)}"
        ) from error
    except ValueError as error:
        given = ", ".join(f"{name} {shown(os.environ[name])}" for name in STARTED)
        raise ValueError(f"{given}: expected whole numbers, and a host's name ({error})") from error
    before, _current = _current, Ranks(rank, size, dist.PrefixStore("astra-gym", store), seconds)
    group = copy.copy(_current)
    try:
        yield _current
    finally:
        group.note_last_word()
        _current = before
        dist.destroy_process_group()
