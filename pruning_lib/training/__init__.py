"""Training loops: one that can be interrupted, and the denoising objective.  Knows neither the zoo nor a grain."""
