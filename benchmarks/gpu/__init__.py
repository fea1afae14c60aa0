"""All that this project wants to know of a GPU, in one command: `make gpu`, or `python -m benchmarks gpu`."""
