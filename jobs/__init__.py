"""Jobs: their rows, states, transitions and requests.  No web, no torch."""
