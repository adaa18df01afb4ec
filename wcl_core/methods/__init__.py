"""The paper's mathematics: methods, losses, weak labels, heads."""
