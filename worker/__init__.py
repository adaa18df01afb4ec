"""The GPU process: a Celery app, the supervisor of one training run, a ticker.  No torch: training is a process."""
