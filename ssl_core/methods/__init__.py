"""Self-supervised methods by name."""

from dataclasses import fields
from typing import Any

from ssl_core.lookup import pick
from ssl_core.methods.base import Method
from ssl_core.methods.contrastive import ACL, ASTrA, SimCLR

METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "acl": ACL, "astra": ASTrA}


def make_method(name: str, **options: Any) -> Method:
    """The method called `name` with those of the options that it has (a fixed set of names serves every method).

    Raises:
        ValueError: if there is no such method.
    """
    kind = pick(name, METHODS, "method")
    own = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in options.items() if key in own})


__all__ = ["ACL", "METHODS", "ASTrA", "Method", "SimCLR", "make_method"]
