"""A process and who waits for it: messages at the start, durations, resources, child processes, import paths."""
