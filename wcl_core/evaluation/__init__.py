"""Evaluation: protocols that measure features, and monitors that need no training.

run         one evaluation: features once, then each protocol of the spec
results     the results of each protocol; a new protocol is registered there
features    the cached features that the protocols share
progress    progress reports and requests to stop, for all protocols

knn, linear, linear_sgd, few_labels, semi_supervised, retrieval, embedding, embedding_map     one file a protocol
accuracy    top-1 and mean-per-class accuracy of predicted classes      classifier    SGD training of a classifier

monitors    pure functions over one batch of embeddings; `wcl_core.training.monitor_batch` applies them while a run
            trains, so they are no protocols and no evaluation job reports them
"""
