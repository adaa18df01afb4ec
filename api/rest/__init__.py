"""The REST interface under /v1, one noun a file."""

from api.rest import (
    activity,
    audit,
    bulk,
    checkpoints,
    comparisons,
    datasets,
    deletions,
    health,
    job_parts,
    job_tables,
    jobs,
    keys,
    metric_tables,
    openapi,
    presets,
    seed_groups,
    shares,
    sweeps,
    weak_labels,
    webhooks,
    weights,
    workers,
)

ROUTERS = tuple(
    module.router
    for module in (
        bulk,
        jobs,
        deletions,
        job_parts,
        metric_tables,
        job_tables,
        weak_labels,
        seed_groups,
        sweeps,
        comparisons,
        shares,
        checkpoints,
        weights,
        datasets,
        workers,
        presets,
        keys,
        webhooks,
        activity,
        audit,
        health,
        openapi,
    )
)
