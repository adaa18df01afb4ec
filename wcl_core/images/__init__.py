"""Random views: augmentation and the parameters drawn for it."""
