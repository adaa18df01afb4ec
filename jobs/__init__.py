"""What a job is: its row, its states and transitions, what may be asked of it.  No web, no torch."""
