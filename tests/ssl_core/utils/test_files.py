import math
from pathlib import Path

import pytest

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "slf.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {"ä": [1, 2]})
    lines = path.read_bytes().splitlines()
    assert (
        lines[0] == b"{"
        and lines[1].startswith(b' "sha256": "')
        and lines[2:]
        == [
            b' "\\u00e4": [',
            b"  1,",
            b"  2",
            b" ]",
            b"}",
        ]
    )
