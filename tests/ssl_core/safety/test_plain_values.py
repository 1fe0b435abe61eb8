import argparse
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astra_gym.ssl_core.safety.plain_values import SCALARS, check_plain, load_plain


def test_what_may_be_written_is_read_as_the_same(tmp_path: Path) -> None:
    scalars = [kind(1) for kind in (np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_)]
    value = {
        "plain": [True, 3, 2**70, 2.5, 1j, "é", b"x", bytearray(b"y"), None],
        "torch": (torch.Size([2, 3]), torch.bfloat16, torch.device("cpu")),
        "kinds": [OrderedDict(a=1), Counter("aab"), {1, 2}, {(1, "x"): []}],
        "scalars": scalars,
    }
    check_plain(value | {"tensor": torch.ones(2)})
    torch.save(value | {"tensor": torch.ones(2)}, tmp_path / "a.pt")
    found = load_plain(tmp_path / "a.pt")
    assert torch.equal(found.pop("tensor"), torch.ones(2)) and found == value
    assert [type(scalar) for scalar in found["scalars"]] == [type(scalar) for scalar in scalars]
    assert all(isinstance(scalar, SCALARS) for scalar in scalars)


class Text(str):
    """Is text, and would be read again only with its class."""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {"b": [lambda: None]}}, r"^a\.b is a function: a checkpoint holds tensors, numbers, text"),
        ({"a": np.zeros(2)}, r"^a is a numpy\.ndarray"),
        ({"a": {Text("b"): 1}}, r"^a key of a is a .*Text"),
        (defaultdict(list), r"^it is a collections\.defaultdict"),
        ({"x" * 400: object()}, r"^x{100} is a object"),
    ],
)
def test_what_could_not_be_read_again_is_named_by_its_place(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        check_plain(value)
    assert len(str(refused.value)) < 300


class Hostile:
    """Its pickle calls a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the file's code was run",)


def test_other_files_are_refused_in_a_few_words_without_running_their_code(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"args": argparse.Namespace(arch="resnet18")}, path)
    assert load_plain(path)["args"].arch == "resnet18"
    torch.save({"x": Hostile()}, path)
    with pytest.raises(ValueError, match=r"^it holds \S+\.\w+, which is neither a tensor nor a plain value$"):
        load_plain(path)
    for content in (b"", b"hello", b"# Readme\n", b"\x80\x02.", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"\w") as refused:
            load_plain(path)
        assert len(str(refused.value)) <= 80 and str(refused.value).isprintable()
        assert "documentation" not in str(refused.value)
