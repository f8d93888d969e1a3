"""Side-by-side timings with the peers and with the machine's floor: ``python -m benchmarks``."""
