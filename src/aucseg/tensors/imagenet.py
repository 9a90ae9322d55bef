"""What encoders trained on ImageNet expect of images, where nothing else is known of them."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean of the ImageNet training images (red, green, blue), in units of 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Standard deviation of the ImageNet training images, in units of 0..255."""
