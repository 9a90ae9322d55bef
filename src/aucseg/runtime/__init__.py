"""A process and the person who waits for it: messages at the start, durations, cores and child processes."""
