"""What makes batches of a data set: transforms, samplers, orders."""
