"""The commands: options and output of each, nothing else."""
