"""The second grain: whole operators of the denoiser, scored and removed for every step (LD-Pruner)."""
