"""The REST interface under /v1, one noun a file."""
