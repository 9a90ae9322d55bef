"""What is counted in a data set, and what follows from it."""
