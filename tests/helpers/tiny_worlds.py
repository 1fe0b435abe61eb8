"""Settings of a world that tests step."""

TINY = {
    "batch_size": 4,
    "epochs": 3,
    "limit": 14,
    "test_limit": 20,
    "image_size": 8,
    "width": 2,
    "projector_hidden": 8,
    "projector_dim": 8,
}
"""A world small enough for a step in milliseconds: 3 updates an epoch, 8 views a batch."""
