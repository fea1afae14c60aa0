"""A wing of the first grain: whole channels and blocks, so that what is left is a smaller dense model."""
