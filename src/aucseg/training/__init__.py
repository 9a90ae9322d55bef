"""The training task, its data module and what watches over a run."""
