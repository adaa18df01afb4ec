"""The REST interface under /v1, one noun a file."""

from api.rest import (
    artifacts,
    checkpoints,
    datasets,
    health,
    job_parts,
    jobs,
    keys,
    openapi,
    seed_groups,
    sweeps,
    weak_labels,
    workers,
)

ROUTERS = tuple(
    module.router
    for module in (
        jobs,
        job_parts,
        artifacts,
        weak_labels,
        seed_groups,
        sweeps,
        checkpoints,
        datasets,
        keys,
        workers,
        health,
        openapi,
    )
)
