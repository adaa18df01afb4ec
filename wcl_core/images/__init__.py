"""Random views of images: the augmentation, and the parameters that are drawn for it."""
