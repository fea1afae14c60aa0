"""What the book's records are made by; `python -m benchmarks NAME` runs one."""
