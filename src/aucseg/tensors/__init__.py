"""What all packages do with tensors alike: dtypes, labels, upsampling of logits, pixels inside of Triton kernels."""
