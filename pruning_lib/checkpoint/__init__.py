"""A wing beside the grains: what a checkpoint file holds, and which parts of it no picture needs."""
