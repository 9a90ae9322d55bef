"""What the rooms above do with tensors alike: dtypes, upsampling of logits, and pixels inside of Triton kernels."""
