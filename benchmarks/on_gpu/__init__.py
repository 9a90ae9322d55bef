"""What to do with some minutes on a bare machine with a GPU and no network, and what to take along: docs/gpu.md."""
