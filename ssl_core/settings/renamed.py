"""Present names by the earlier ones, of what stands in files and on command lines of version 0.1."""

from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {"normalisation": "normalization", "neighbours": "neighbors"}
"""Of settings and flags of any command."""
REINFORCE_SETTINGS: Mapping[str, str] = {"entropy_coef": "ent_coef", "normalise_advantage": "normalize_advantage"}
"""Of the agent's own settings, in `agent_kwargs` and in its checkpoints."""
