"""The update of the target network: the learner, its optimizers, the selection of a coreset."""
