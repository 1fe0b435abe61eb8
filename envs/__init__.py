"""Choosing attacks as a Gymnasium problem: the import registers `ASTrA/BatchAttack-v0` and `ASTrA/ViewAttack-v0`."""

import gymnasium as gym

BATCH_ID = "ASTrA/BatchAttack-v0"
VIEW_ID = "ASTrA/ViewAttack-v0"


def register() -> None:
    """Registers both environments with Gymnasium; twice is harmless."""
    if BATCH_ID not in gym.registry:
        gym.register(BATCH_ID, entry_point="envs.batch_env:BatchAttackEnv")
    if VIEW_ID not in gym.registry:
        gym.register(VIEW_ID, vector_entry_point="envs.view_env:ViewAttackVectorEnv")


register()
