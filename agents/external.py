"""Custom agents, by dotted path: `my_module:MyAgent`."""

import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from astra_gym.agents import storage
from astra_gym.agents.base import Agent
from astra_gym.ssl_core.utils.import_path import described, imported, is_dotted
from astra_gym.ssl_core.utils.messages import shown

EXPECTED = (
    "a subclass of Stable-Baselines3's BaseAlgorithm, or a function from an observation array (num_envs, ...) to an "
    "array of actions"
)


def resolve(path: str) -> Any:
    """Import the attribute that a dotted path names; its module may be in the current directory.

    Args:
        path: `package.module:Name`.

    Raises:
        ValueError: if the path is malformed, its module cannot be imported or has no such attribute, or the attribute
            is not an agent.
    """
    found = imported(path, "agent", "my_module:MyAgent")
    is_algorithm = isinstance(found, type) and issubclass(found, BaseAlgorithm)
    if not is_algorithm and (isinstance(found, type) or not callable(found)):
        raise ValueError(f"agent {shown(path)} is {described(found)}: expected {EXPECTED}")
    return found


def check_trusted(file: str | os.PathLike[str], saved: str, expected: str | None) -> None:
    """Refuse an agent's file that would import a module which the caller did not name.

    Files hold plain values and are loaded without running code; importing a dotted path from a file would run code.

    Args:
        file: path of the file.
        saved: name of the agent in the file.
        expected: name of the agent that the caller expects; None: any of ours.

    Raises:
        ValueError: if the file is another agent's, or that of a custom agent which the caller did not name.
    """
    if expected is not None and saved != expected:
        raise ValueError(f"{file} holds a {shown(saved)} agent: expected {shown(expected)}")
    if expected is None and is_dotted(saved):
        raise ValueError(
            f"{file} holds the agent {shown(saved)}, and loading it imports that module: if you trust it, name it by "
            f"load(..., kind={saved!r})"
        )


def own_algorithm(path: str) -> type[BaseAlgorithm]:
    """Import the Stable-Baselines3 class at a dotted path.

    Raises:
        ValueError: as `resolve`, or if it is a function.
    """
    found = resolve(path)
    if not isinstance(found, type):
        raise ValueError(f"agent {shown(path)} is a function: expected a subclass of Stable-Baselines3's BaseAlgorithm")
    return found


class FunctionAgent(Agent):
    """A custom function as a control: it chooses the actions and learns nothing.

    The function gets the observations of all sub-environments (num_envs, ...) as a NumPy array and returns their
    actions (num_envs, ...): integers for discrete actions, floats within the bounds for a Box. No checkpoint holds a
    state of the function itself, such as a random generator.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        path: the function's dotted path, which is the name of the agent in its files.
        seed, device, tensorboard_log: as in `Agent`.

    Raises:
        ValueError: as `resolve`, or if it is a class.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self,
        env: Any,
        path: str,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.function: Callable[[np.ndarray], Any] = resolve(path)
        if isinstance(self.function, type):
            raise ValueError(f"agent {shown(path)} is the class {self.function.__name__}: expected a function")
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        super().__init__(env, seed=seed, device=device, tensorboard_log=log)
        self.kind = path  # type: ignore[misc]

    def _act(self, observation: Tensor) -> Tensor:
        # a copy, since the function may write into it
        given = self.function(observation.cpu().numpy().copy())
        try:
            array = np.asarray(given)
        except ValueError as error:
            raise ValueError(f"{self.kind} gave actions {shown(given)}: expected rows of one length") from error
        actions = self._checked(array, len(observation))
        return torch.as_tensor(actions, device=self.device)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _checked(self, actions: np.ndarray, n: int) -> np.ndarray:
        space = self.action_space
        wanted = (n, *(space.shape or ()))
        if actions.shape != wanted:
            raise ValueError(f"{self.kind} gave actions of shape {actions.shape}: expected {wanted}")
        box = isinstance(space, spaces.Box)
        if not np.issubdtype(actions.dtype, np.floating if box else np.integer):
            expected = "floats" if box else "integers"
            raise ValueError(f"{self.kind} gave actions of dtype {actions.dtype}: expected {expected}, for {space}")
        if isinstance(space, spaces.Box):
            low, high = space.low, space.high
        else:
            sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.asarray(space.n)  # type: ignore[attr-defined]
            low, high = np.zeros_like(sizes), sizes - 1
        # written so that NaN fails
        if not ((actions >= low) & (actions <= high)).all():
            given = f"from {actions.min()} to {actions.max()}"
            raise ValueError(f"{self.kind} gave actions {given}: expected elements of {space}")
        return actions.astype(np.float32 if box else np.int64)

    def _arguments(self) -> dict[str, Any]:
        return {"path": self.kind}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        env: Any = None,
        device: torch.device | str = "auto",
        force_reset: bool = True,
        kind: str | None = None,
    ) -> Self:
        """Read an agent that `save` wrote; see `Agent.load`.

        Args:
            path, env, device, force_reset: as in `Agent.load`.
            kind: the function's dotted path; a name in a file is not imported unless the caller names it too.

        Raises:
            ValueError: as `Agent.load` and `resolve`, or if `kind` is not the saved function's.
        """
        saved = storage.read(path)
        name = saved["agent"]
        if not is_dotted(name) or "path" not in saved["arguments"]:
            raise ValueError(f"{path} holds a {shown(name)} agent: expected a function's, by its dotted path")
        for named in (name, saved["arguments"]["path"]):
            check_trusted(path, named, kind)
        made = type(cls.__name__, (cls,), {"kind": name})
        return super(FunctionAgent, made).load(path, env, device, force_reset)  # type: ignore[misc]
