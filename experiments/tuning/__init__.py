"""Search for good constants on a validation part of the training images, within a budget of passes."""
