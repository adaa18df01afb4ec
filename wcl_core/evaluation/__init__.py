"""How good features are: kNN, linear and few-label protocols over one set of cached features."""
