"""Mean and standard deviation of ImageNet's pixels in [0, 1], as networks pretrained on it expect."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
