"""The worker: a Celery app, a supervisor of one training run, a ticker.  It never loads torch; a run is a process."""
