import math
from pathlib import Path

import pytest

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import expanded, replacing, resolved, write_file, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "slf.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_and_text_are_written_whole_durable_or_not(tmp_path: Path) -> None:
    for content in ("ä\n", b"\xff"):
        write_file(tmp_path / "new" / "a", content)
        assert (tmp_path / "new" / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)
    with replacing(tmp_path / "b", durable=True) as temporary:
        temporary.write_text("b")
    assert (tmp_path / "b").read_text() == "b"


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


def test_paths_that_no_file_system_takes_and_links_in_a_circle_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("x" * 300, "d/" * 3000, "d/" * 600, "~" + "x" * 300):
        with pytest.raises(ValueError, match=r"expected less than 4096 bytes|no home folder") as caught:
            expanded(path)
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="lead in a circle"):
        resolved(tmp_path / "loop" / "a")
    assert resolved(tmp_path / "new" / ".." / "b") == tmp_path.resolve() / "b"


def test_the_home_folder(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(expanded(path)) for path in ("~/x", "~", "x/~", Path("~/y"), "/z")] == [
        *("/home/me/x", "/home/me", "x/~", "/home/me/y", "/z")
    ]
    with pytest.raises(ValueError, match="~nobody-has-this-name/x: there is no home folder for its beginning"):
        expanded("~nobody-has-this-name/x")
