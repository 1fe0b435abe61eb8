"""The names of an environment's arguments, for a helpful error."""

from collections.abc import Collection, Iterable, Iterator
from inspect import Parameter, signature

from astra_gym.ssl_core.utils.registry import choices_for


def check_arguments(kind: type, others: Iterable[str], settings: Collection[str] = ()) -> None:
    """Check the arguments that an environment's `__init__` does not name itself.

    Args:
        kind: class of the environment.
        others: names of these arguments.
        settings: names that are allowed besides.

    Raises:
        TypeError: if a name is unknown; it suggests the nearest one that is known.
    """
    for name in others:
        if name not in settings:
            hint = choices_for(name, [*dict.fromkeys(_own(kind)), *settings], "setting")
            # Python's own words and type: TorchRL tries `frameskip` on every environment, and looks for them
            raise TypeError(f"{kind.__name__}.__init__() got an unexpected keyword argument '{name}': {hint}")


def _own(kind: type) -> Iterator[str]:
    """Yield the names of a class's arguments, and those of its bases that get what it does not name itself."""
    for each in kind.__mro__[:-1]:
        made = vars(each).get("__init__")
        given = [] if made is None else list(signature(made).parameters.values())[1:]
        if Parameter.VAR_KEYWORD in {parameter.kind for parameter in given}:
            yield from (parameter.name for parameter in given if parameter.kind is not Parameter.VAR_KEYWORD)
