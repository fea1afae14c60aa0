"""All that this project wants to know of a GPU, in one command: `make gpu`, or `python -m benchmarks gpu`.

`command` supervises and reports, `worker` runs stages and keeps what they find, `stages` says what is measured, in
order of worth. `--dry-run` runs every stage on the CPU at toy shapes: nothing here is first executed on a GPU.
"""
