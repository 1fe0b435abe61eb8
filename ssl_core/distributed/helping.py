"""Work that rank 0 divides: it leads, and the other ranks do what it asks for.

Training is the same on all ranks. An evaluation is not: rank 0 alone reads, trains classifiers, prints and writes, and
shares out the long part, the batches of an attack.
"""

import io
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch

from astra_gym.ssl_core.distributed.ranks import RankLostError, Ranks
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.import_path import look_here
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.stopping import status_of

Item = TypeVar("Item")
Found = TypeVar("Found")

_led: Ranks | None = None
_open: Generator[Any, None, None] | None = None
"""What was divided last: an error in the caller may keep it from its end, for which the other ranks wait."""


class _Outcome(NamedTuple):
    """What came of an item: a value, or the error."""

    value: Any = None
    error: Exception | None = None


@contextmanager
def led(ranks: Ranks) -> Iterator[None]:
    """Let the other ranks, which are in `help_first`, take part in what is `divided` inside. Alone it does nothing."""
    global _led
    before, _led = _led, None if ranks.size == 1 else ranks
    try:
        yield
    finally:
        if _led is not None:
            _close()
        _led = before


def divided(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Return the results of the items, in their order; inside `led` all ranks work on them.

    In one process this is `map`. Among ranks each item is computed wholly by one of them, so that its result is the
    same on CPUs of one kind.

    Args:
        work: function of an item, and everything it needs; it can be pickled, such as a `functools.partial` of a
            module's function. Tensors in it move to each rank's own device.
        items: items; their tensors, and those of the results, lie on the CPU.

    Raises:
        RankLostError: if another rank is gone.
        Exception: what the work raises, on any rank.
    """
    global _open
    if _led is None:
        return map(work, items)
    _close()
    _open = _among(_led, work, iter(items))
    return _open


def _close() -> None:
    """End what was divided last, if the caller has not, while the other ranks are there."""
    if _open is not None:
        with suppress(RankLostError):
            _open.close()


def _among(ranks: Ranks, work: Callable[[Item], Found], items: Iterator[Item]) -> Generator[Found, None, None]:
    message = _packed(work)
    ranks.call()
    ranks.object_of_first(message)
    # it may be as large as all images
    del message
    waiting = True
    try:
        while given := list(islice(items, ranks.size)):
            waiting = False
            ranks.object_of_first(given)
            # what an item calls is not divided again
            with led(Ranks()):
                own = _outcome(work, given[0])
            outcomes = ranks.objects(own)[: len(given)]
            waiting = True
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                yield outcome.value
    finally:
        # unless this process is stopped in the middle of an exchange
        if waiting:
            ranks.object_of_first([])


def _packed(work: Any) -> bytes:
    message = io.BytesIO()
    try:
        torch.save(work, message)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise RuntimeError(
            f"this classifier cannot be sent to other ranks ({brief(str(error), 100)}): evaluate it in one process"
        ) from error
    return message.getvalue()


def _outcome(work: Callable[[Any], Any], item: Any) -> _Outcome:
    try:
        return _Outcome(work(item))
    except Exception as error:
        return _Outcome(error=_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return the error, or one in its words if it does not survive pickling, as some of custom code do not."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def help_first(ranks: Ranks) -> int:
    """As another rank, work on what rank 0 divides, until it has said its last word; return the exit status."""
    calls = 0
    # where rank 0 may have found the user's own network
    look_here()
    try:
        with ieee_fp32():
            while ranks.is_called(calls):
                _help(ranks)
                calls += 1
    except KeyboardInterrupt as stop:
        return status_of(stop)
    except RankLostError:
        # rank 0 has said why, or torchrun does
        return 1
    return 0


def _help(ranks: Ranks) -> None:
    loaded = _outcome(_unpacked, ranks.object_of_first(None))
    if loaded.error is not None:
        reason = f"{type(loaded.error).__name__}: {brief(str(loaded.error), 100)}"
        loaded = _Outcome(error=RuntimeError(f"rank {ranks.rank} cannot load this classifier ({reason})"))
    while given := ranks.object_of_first(None):
        own = _Outcome(error=loaded.error)
        if loaded.error is None and ranks.rank < len(given):
            own = _outcome(loaded.value, given[ranks.rank])
        ranks.objects(own)


def _unpacked(message: bytes) -> Any:
    # a whole module from the same program, not a file that somebody could have changed
    return torch.load(io.BytesIO(message), map_location=_to_own_device, weights_only=False)


def _to_own_device(storage: Any, location: str) -> Any:
    """Move what was on rank 0's GPU to this rank's own."""
    return storage if location == "cpu" else storage.cuda(torch.cuda.current_device())
