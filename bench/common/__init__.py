"""What the benchmark's commands have in common; nothing here imports from a command."""
