"""Training: the loop in `pretrain`, and its parts.

pretrain ── learner ── gradient_cache, momentum        the gradients of a batch
├─ view_maker                                 the views of a batch
├─ optim                                      optimisers and their state
├─ saving                                     checkpoints of the run
└─ run_metrics, monitor_batch, collapse       metrics, monitors and the rule of collapse
"""
