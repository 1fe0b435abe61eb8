"""Errors of a disk, also those that a library hides."""

import errno
from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.safety.disk import FolderLostError, disk_error, is_full, is_full_at

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_what_pytorch_tells_of_a_full_disk_is_recognised() -> None:
    with pytest.raises((RuntimeError, OSError)) as caught, FULL.open("wb", buffering=0) as file:
        torch.save({"weights": torch.zeros(1000)}, file)
    assert is_full(caught.value)
    found = disk_error(caught.value)
    assert found is not None and found.errno == errno.ENOSPC


def test_only_a_disks_errors_are_recognised() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG):
        error = OSError(number, "x")
        assert disk_error(error) is error
        assert is_full(error) == (number in (errno.ENOSPC, errno.EDQUOT))
        try:
            try:
                raise error
            except OSError as reason:
                raise ValueError("cannot write") from reason
        except ValueError as told:
            assert disk_error(told) is error
    lost = FolderLostError("gone")
    assert disk_error(lost) is lost and not is_full(lost)
    loop = ValueError("a")
    loop.__context__ = RuntimeError("b")
    loop.__context__.__context__ = loop
    for other in (loop, FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), OSError("x")):
        assert disk_error(other) is None


def test_a_full_folder(tmp_path: Path) -> None:
    assert not is_full_at(tmp_path) and not is_full_at(tmp_path / "nowhere")
