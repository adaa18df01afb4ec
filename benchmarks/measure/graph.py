"""Components of a nearest-neighbour graph: pointer doubling against SciPy, both with torch tensors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from measure.rounds import Row, faster, interleaved, seconds
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from wcl_core.methods.weak_labels import components, nearest_neighbours

GOALS = {256: 3.0, 1024: 1.0, 4096: 1.0, 16384: 1.0}


def scipy_components(nn: Tensor) -> Tensor:
    """Return SciPy's components in the fastest form: one directed edge a row, so the CSR arrays need no sorting."""
    count = len(nn)
    graph = csr_matrix((np.ones(count, dtype=np.int8), nn.numpy(), np.arange(count + 1)), shape=(count, count))
    return torch.from_numpy(connected_components(graph, directed=True, connection="weak")[1])


def is_same_partition(a: Tensor, b: Tensor) -> bool:
    pairs = torch.stack((a.long(), b.long()))
    return len(pairs.unique(dim=1).T) == len(a.unique()) == len(b.unique())


def rows(rounds: int) -> list[Row]:
    table_rows = []
    for count, goal in GOALS.items():
        u = F.normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(count)), dim=1)
        nn = nearest_neighbours(u)
        assert is_same_partition(components(nn), scipy_components(nn)), "the partitions differ"
        repeats = max(4, 65536 // count)

        def ours(nn: Tensor = nn, repeats: int = repeats) -> float:
            return seconds(lambda: components(nn), repeats)

        def theirs(nn: Tensor = nn, repeats: int = repeats) -> float:
            return seconds(lambda: scipy_components(nn), repeats)

        times = interleaved(ours, theirs, rounds)
        table_rows.append(faster(f"weak labels, graph only, B = {count:,}", "SciPy", *times, goal, "us"))
    return table_rows
