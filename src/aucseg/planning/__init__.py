"""From data and machine to the settings of a run, each with its reason: `fingerprint`, `machine`, `plan`."""
