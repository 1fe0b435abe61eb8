"""The folder and the log of a rank that writes nothing."""

from pathlib import Path

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.claims import held
from astra_gym.experiments.runs.silent import SilentFolder, SilentLog
from astra_gym.ssl_core.attacks.pgd import Budget
from tests.helpers.tiny_training import TINY_SETTINGS


def test_nothing_is_written(tmp_path: Path) -> None:
    settings = Settings.of(**TINY_SETTINGS)
    engine = AttackEngine(settings.world)
    budget = Budget.uniform(engine.num_attacked, epsilon=0.01, step_size=0.01, steps=1)
    (tmp_path / "of another process").touch()
    with held(SilentFolder(tmp_path)) as folder, SilentLog(folder, 4, resumed_step=3) as log:
        folder.check_new()
        folder.begin(settings, ["train"])
        folder.save("last.pt", "run", {})
        folder.accept_config()
        row = log.step(engine.play(budget))
        log.images(engine.last)
        log.hparams(settings, ["loss/total"])
        log.agent_writer(lambda step: step).write({"agent/x": 1.0}, {}, 1)
        log.flush()
        damage = folder.note_resume(settings, ["train"]) + folder.note_training(0, 1, 1.0, {}, {}) + log.damage
    assert row["step"] == 1 and damage == []
    assert [path.name for path in tmp_path.iterdir()] == ["of another process"]
