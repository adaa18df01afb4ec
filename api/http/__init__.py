"""Everything that an HTTP request passes through before it reaches a route."""
