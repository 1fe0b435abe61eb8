"""Checks of single values that several records of settings share; each raises a ValueError that names the setting."""

import os
from collections.abc import Mapping

import numpy as np

from astra_gym.ssl_core.utils.finite import is_number
from astra_gym.ssl_core.utils.messages import shown


def check_truth(name: str, value: object) -> None:
    """Raise a ValueError unless the value is true or false."""
    if type(value) is not bool:
        raise ValueError(f"{name} is {shown(value)}: expected true or false")


def check_path(name: str, value: object) -> None:
    """Raise a ValueError if a given value is not a path, or is empty."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} is {shown(value)}: expected a path, or leave it out")
    if value == "":
        raise ValueError(f"{name} is empty: expected a path, or leave it out")


def check_options(name: str, value: object) -> None:
    """Raise a ValueError unless the value is a dict of settings by name, or None."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise ValueError(f"{name} is {shown(value)}: expected settings by name, as a dict")


def check_numbers(name: str, value: object, length: int) -> None:
    """Raise a ValueError unless the value is a list, a tuple or an array of `length` finite numbers."""
    listed = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    numbers = [part for part in listed if is_number(part)]
    if len(listed) != length or len(numbers) != length:
        raise ValueError(f"{name} is {shown(value)}: expected {length} numbers")
