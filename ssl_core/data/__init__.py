"""Data sets, folders of images, and the batches that training draws from them."""
