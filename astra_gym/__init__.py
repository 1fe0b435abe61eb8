"""Self-supervised adversarial pre-training as Gymnasium environments; the import registers them with Gymnasium."""

from pathlib import Path

__version__ = "0.2.0"
BATCH_ID = "ASTrA/BatchAttack-v1"
"""One attack for the whole batch: `gymnasium.make`."""
VIEW_ID = "ASTrA/ViewAttack-v1"
"""An attack for each view: `gymnasium.make_vec`."""
RUN_ID = "ASTrA/TrainingRun-v0"
"""A whole training as one episode: `gymnasium.make`."""
BATCH_V0_ID, VIEW_V0_ID = "ASTrA/BatchAttack-v0", "ASTrA/ViewAttack-v0"
"""Their first versions, in which a training never ends."""
STEP_ID = "ASTrA/AttackStep-v0"
"""An attack as one episode, in which each view stops by itself: `gymnasium.make_vec`."""

if __name__ != "astra_gym":
    # the root of a checkout is on the package's path: no second copy by `import astra_gym.astra_gym`
    raise ImportError(f"{__name__} is astra_gym itself: import astra_gym")

_HERE = Path(__file__).resolve().parent
if not (_HERE / "ssl_core").is_dir():
    # a checkout, where `ssl_core`, `envs`, `agents` and `experiments` are beside this folder
    __path__.append(str(_HERE.parent))

from astra_gym.ssl_core.utils.stopping import end_while_starting  # noqa: E402

# only for a command, and before the imports that take seconds
end_while_starting()

import gymnasium as gym  # noqa: E402


def register() -> None:
    """Register the environments with Gymnasium; a second call is harmless."""
    single = {
        BATCH_V0_ID: "batch_env:BatchAttackEnv",
        BATCH_ID: "batch_env:BatchAttackEnvV1",
        RUN_ID: "training_run.environment:TrainingRunEnv",
    }
    vector = {
        VIEW_V0_ID: "view_env:ViewAttackVectorEnv",
        VIEW_ID: "view_env:ViewAttackVectorEnvV1",
        STEP_ID: "attack_step_env:AttackStepVectorEnv",
    }
    for name in single.keys() - gym.registry.keys():
        gym.register(name, entry_point=f"astra_gym.envs.{single[name]}")
    for name in vector.keys() - gym.registry.keys():
        gym.register(name, vector_entry_point=f"astra_gym.envs.{vector[name]}")


register()
