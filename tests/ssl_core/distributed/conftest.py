"""What four ranks did, once for all tests here."""

from typing import Any

import pytest

from tests.helpers.on_ranks import on_ranks

SIZE = 4


@pytest.fixture(scope="session")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `exchanges` of `tests.helpers.rank_works` returned on each of four ranks."""
    return on_ranks(SIZE, "tests.helpers.rank_works:exchanges", tmp_path_factory.mktemp("ranks"))
