"""Everything that needs a GPU, in one command: ``make gpu``. docs/gpu.md says how to read it."""
