"""Present names by the earlier ones, of what stands in files and on command lines of earlier versions."""

from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {"normalisation": "normalization", "neighbours": "neighbors"}
"""Of settings and flags of any command."""
REINFORCE_SETTINGS: Mapping[str, str] = {"entropy_coef": "ent_coef", "normalise_advantage": "normalize_advantage"}
"""Of the agent's own settings, in `agent_kwargs` and in its checkpoints."""
ROCL_OPTIONS: Mapping[str, str] = {"regulariser": "regularizer"}
"""Of the options of the method RoCL, in `method_kwargs`."""
METRICS: Mapping[str, str] = {
    "loss/regulariser": "loss/regularizer",
    "budget/epsilon": "budget/epsilon_255",
    "budget/step_size": "budget/step_size_255",
    "budget/strength": "budget/strength_255",
    "actions/epsilon": "actions/epsilon_255",
    "actions/step_size": "actions/step_size_255",
    "by_clean_loss/epsilon": "by_clean_loss/epsilon_255",
    "by_clean_loss/step_size": "by_clean_loss/step_size_255",
}
"""Of values in rows of `metrics.jsonl`, where budgets are in 1/255 under both names."""
OLDER_ROW = "budget/epsilon"
"""The name by which a row of an earlier version is known: each row with another old name has it."""
