"""Everything that a GPU can be asked, as one command of six minutes: `python -m benchmarks.gpu`."""
