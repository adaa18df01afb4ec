"""The forms for new jobs and sweeps."""
