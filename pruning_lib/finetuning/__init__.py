"""Training a pruned denoiser further: the loop, its losses, and a teacher to follow."""
