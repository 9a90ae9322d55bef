"""Methods x seeds x models on one card and one budget, resumable, in tables with intervals."""
