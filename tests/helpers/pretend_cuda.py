"""A pretend GPU: tensors that say they lie on cuda:0 and compute on the CPU.

It finds what a machine without a GPU cannot: operations that mix devices, random numbers from a generator of the other
device, and places where the host waits for the GPU. What it cannot see: streams, memory, and kernels.

    with pretend_cuda() as gpu:
        engine = AttackEngine(settings, device="cuda")
        with gpu.counting():
            ...
    assert not gpu.mixed and gpu.waits.total() <= 2
"""

import collections
import contextlib
import copy
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from astra_gym.ssl_core.kernels import fixed_conv

CUDA = torch.device("cuda:0")
VIEWS = """
view _unsafe_view reshape expand permute transpose t slice select unsqueeze squeeze detach alias as_strided split
split_with_sizes unbind _reshape_alias diagonal unfold empty empty_like new_empty empty_strided new_empty_strided
lift_fresh chunk movedim unflatten flatten _to_copy copy_
""".split()  # noqa: SIM905
"""Operations that launch nothing, or that are counted elsewhere."""
SIZED_BY_VALUES = """
nonzero masked_select _unique2 unique_dim unique bincount repeat_interleave unique_consecutive
""".split()  # noqa: SIM905
"""Operations whose result has a size that the host must know: it waits."""
READING = ("_local_scalar_dense", "item", "is_nonzero", "equal")
OURS = ("/ssl_core/", "/envs/", "/agents/", "/experiments/", "/stable_baselines3/")
ARTIFACTS = ("torch/nn/utils/clip_grad.py",)
"""Files of torch's that ask C++ for a tensor's device, which says cpu of a pretended one."""


class PretendGpu:
    """What was seen while `counting`.

    Attributes:
        mixed: operations on tensors or generators of both devices, by operation and place.
        waits: places where the host waited.
        launches: kernels that were queued, by operation.
    """

    def __init__(self) -> None:
        self.mixed: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()
        self.launches: collections.Counter[str] = collections.Counter()
        self.watching = False

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts anew inside."""
        for counter in (self.mixed, self.waits, self.launches):
            counter.clear()
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def waited(self, what: str) -> None:
        self._note(self.waits, what)

    def mixes(self, what: str) -> None:
        self._note(self.mixed, what)

    def launched(self, name: str) -> None:
        if self.watching:
            self.launches[name] += 1

    def _note(self, counter: "collections.Counter[str]", what: str) -> None:
        if not self.watching:
            return
        frames = traceback.extract_stack()
        if any(frame.filename.endswith(ARTIFACTS) for frame in frames):
            return
        places = [
            f for f in reversed(frames) if any(part in f.filename for part in OURS) and "/tests/" not in f.filename
        ]
        where = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in places[:2])
        counter[f"{what} at {where or 'torch'}"] += 1


GPU = PretendGpu()


class PretendTensor(torch.Tensor):
    """A tensor of the host's under the name of one on cuda:0."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="cpu",
            requires_grad=False,
        )
        made.inner = inner.detach()
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, kwargs = kwargs or {}, dict(kwargs or {})
        if func is torch.Tensor.cpu and isinstance(args[0], PretendTensor):
            return _to_host(args[0])
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            values, device, rest = args[0], kwargs.pop("device", None), []
            for part in args[1:]:
                if isinstance(part, str | torch.device):
                    device = torch.device(part)
                elif isinstance(part, torch.Tensor):
                    device, rest = part.device, [*rest, part.dtype]
                elif isinstance(part, bool):
                    kwargs["non_blocking"] = part
                elif part is not None:
                    rest.append(part)
            if device is not None and isinstance(values, PretendTensor):
                kwargs.pop("non_blocking", None)
                moved = values if torch.device(device).type == "cuda" else _to_host(values)
                if not rest and not kwargs:
                    return moved
                with torch._C.DisableTorchFunctionSubclass():
                    return func(moved, *rest, **kwargs)
            if device is not None:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(values, device, *rest, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **given)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        if id(self) not in memo:
            with torch._C.DisableTorchFunctionSubclass():
                made = PretendTensor(self.inner.detach().clone())
            if getattr(self, "_is_param", False):
                made._is_param = True
            made.requires_grad_(self.requires_grad)
            if self.grad is not None:
                made.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inner!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to the host first")

    def tolist(self) -> Any:
        GPU.waited("tolist")
        return self.inner.tolist()

    def item(self) -> Any:
        GPU.waited("item")
        return self.inner.item()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.clone().__reduce_ex__(protocol)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


def _to_host(values: PretendTensor) -> torch.Tensor:
    GPU.waited(f"copy to the host {tuple(values.shape)}")
    with torch._C.DisableTorchFunctionSubclass():
        return values.inner.detach().clone()


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation, some of whose tensors are pretended ones, or whose result shall be."""
    name = func._schema.name.split("::")[-1]
    flat, _ = tree_flatten((args, kwargs))
    pretended = [part for part in flat if isinstance(part, PretendTensor)]
    host = [part for part in flat if isinstance(part, torch.Tensor) and not isinstance(part, PretendTensor)]
    words = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    device = None if words.get("device") is None else torch.device(words["device"])
    if device is not None and device.type == "cuda":
        words["device"] = torch.device("cpu")
    there = bool(pretended) if device is None else device.type == "cuda"
    if name == "_to_copy":
        there = bool(pretended) or there
        if not pretended and there and not words.get("non_blocking", False):
            GPU.waited(f"blocking copy to the GPU {tuple(host[0].shape)}")
    elif name == "copy_":
        there = isinstance(args[0], PretendTensor)
        if there != isinstance(args[1], PretendTensor) and not (len(args) > 2 and args[2]):
            GPU.waited("copy_ between devices")
    elif name in READING:
        there = False
        if pretended:
            GPU.waited(name)
            if host:
                GPU.mixes(name)
    elif device is None:
        _check_operands(name, args, pretended, host)
        if name in SIZED_BY_VALUES and pretended:
            GPU.waited(name)
    for generator in (part for part in flat if isinstance(part, torch._C.Generator)):
        if (_GENERATORS.get(generator._cdata, "cpu") == "cuda") != there:
            GPU.mixes(f"{name} with a generator of the other device")
    if there and name not in VIEWS:
        GPU.launched(name)

    def bare(part: Any) -> Any:
        return part.inner if isinstance(part, PretendTensor) else part

    def dressed(part: Any) -> Any:
        return PretendTensor(part) if isinstance(part, torch.Tensor) and not isinstance(part, PretendTensor) else part

    result = func(*tree_map(bare, args), **tree_map(bare, words))
    if not there:
        return result
    result = tree_map(dressed, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if pretended else result


def _check_operands(name: str, args: Any, pretended: list[Any], host: list[torch.Tensor]) -> None:
    """Tensors of the host's may only be scalars beside those of the GPU, or indices, for which one waits."""
    large = [part for part in host if part.dim()]
    if not pretended:
        return
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        indices = [part for part in args[1] or [] if isinstance(part, torch.Tensor)]
        if any(part is index for part in large for index in indices):
            GPU.waited("an index of the host's")
        if name == "index" and any(part.dtype in (torch.bool, torch.uint8) for part in indices):
            GPU.waited("an index by a mask")
        large = [part for part in large if not any(part is index for index in indices)]
    if torch._C._current_autograd_node() is not None:
        # zeros that autograd fills in for a missing gradient are made in C++, where a pretended tensor is the host's
        large = [part for part in large if bool(part.any())]
    if large:
        GPU.mixes(f"{name} {[(tuple(part.shape), str(part.dtype)) for part in large]}")


class _Mode(TorchDispatchMode):
    """Operations that make tensors on "cuda" out of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        device = kwargs.get("device")
        asked = device is not None and torch.device(device).type == "cuda"
        if asked or any(isinstance(part, PretendTensor) for part in flat):
            return _run(func, args, kwargs)
        return func(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})


_GENERATORS: dict[int, str] = {}
"""The device that a generator was made for, by the address of what it stands for: an operation gets another object."""


class _Generator(torch.Generator):
    """A generator of the host's, whatever device it is made for."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, device="cpu")
        _GENERATORS[made._cdata] = torch.device(device).type
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendGpu]:
    """torch believes inside that there is one GPU; the oldest versions cannot, and the test is skipped."""
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip("this version of torch cannot pretend a GPU")
    bytes_of_state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (70 * 2**30, 80 * 2**30),
        "max_memory_allocated": lambda device=None: 1,
        "get_device_name": lambda device=None: "a pretended GPU",
        "synchronize": lambda device=None: GPU.waited("torch.cuda.synchronize"),
        "get_rng_state": lambda device=None: bytes_of_state,
        "set_rng_state": lambda state, device=None: None,
        "get_rng_state_all": lambda: [bytes_of_state],
        "set_rng_state_all": lambda states: None,
        "is_current_stream_capturing": lambda: False,
    }
    as_tensor, tensor, load = torch.as_tensor, torch.tensor, torch.load

    def made(data: Any, *rest: Any, device: Any = None, **more: Any) -> torch.Tensor:
        values = tensor(data, *rest, **more)
        return values if device is None else values.to(device)

    def taken(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        values = data if isinstance(data, torch.Tensor) else as_tensor(data)
        values = values if dtype is None else values.to(dtype)
        return values if device is None else values.to(device)

    def loaded(file: Any, map_location: Any = None, **more: Any) -> Any:
        content = load(file, map_location="cpu", **more)
        if map_location is None or torch.device(map_location).type == "cpu":
            return content
        return tree_map(lambda part: PretendTensor(part) if isinstance(part, torch.Tensor) else part, content)

    torch._C._ensureCUDADeviceGuardSet()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name, value in {"Generator": _Generator, "tensor": made, "as_tensor": taken, "load": loaded}.items():
            patches.enter_context(mock.patch.object(torch, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        patches.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        # Triton's kernels start on a real one only
        patches.enter_context(mock.patch.object(fixed_conv, "FUSES", False))
        patches.enter_context(_Mode())
        yield GPU
