"""The third grain: units of the denoiser at single denoising steps, computed or answered from before (DiP-GO)."""
