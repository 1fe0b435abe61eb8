"""The update of the target network: the learner, its optimizers, the choice of a coreset."""
