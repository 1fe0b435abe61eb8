import pytest

from astra_gym.agents import AGENTS
from astra_gym.envs.observations import OBSERVATIONS
from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.config.listing import listing
from astra_gym.ssl_core.attacks.pgd import STARTS
from astra_gym.ssl_core.attacks.settings import STOPS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS


def test_everything_there_is_stands_on_a_line_of_its_own_with_its_paper() -> None:
    parts = listing().split("\n\n")
    tables = [
        {name: method.paper for name, method in METHODS.items()},
        {name: entry.paper for name, entry in AGENTS.items()},
        *(dict.fromkeys(table, "") for table in (DATASETS, OBSERVATIONS, REWARD_TERMS, STARTS, STOPS)),
    ]
    assert len(parts) == len(tables)
    for text, table in zip(parts, tables, strict=True):
        _, *lines = text.strip().split("\n")
        assert [line.split()[0] for line in lines] == list(table)
        for line, paper in zip(lines, table.values(), strict=True):
            assert paper in line and len(line) <= 150
    assert all(method.paper and method.summary for method in METHODS.values())


def test_the_flag_lists_and_ends(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--list", "--method=unheard"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == listing()
