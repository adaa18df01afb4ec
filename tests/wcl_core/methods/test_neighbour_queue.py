"""The ring of past embeddings."""

from __future__ import annotations

import torch

from wcl_core.methods.neighbour_queue import NeighbourQueue

torch.set_num_threads(1)


def test_the_oldest_batch_is_replaced_and_empty_rows_are_marked() -> None:
    queue = NeighbourQueue(6, 3, torch.device("cpu"))
    assert queue.images.tolist() == [-1] * 6
    for step in range(5):
        images = torch.tensor([10 * step, 10 * step + 1])
        u = torch.full((2, 3), float(step), requires_grad=True)
        queue.push(u, -u, images, step)
        if step == 0:
            assert queue.images.tolist() == [0, 1, -1, -1, -1, -1]
    assert queue.images.tolist() == [30, 31, 40, 41, 20, 21]
    assert queue.u[0, :, 0].tolist() == [3, 3, 4, 4, 2, 2]
    assert torch.equal(queue.u[1], -queue.u[0])
    assert not queue.u.requires_grad


def test_a_queue_continues_from_its_state() -> None:
    first, second = (NeighbourQueue(4, 2, torch.device("cpu")) for _ in range(2))
    first.push(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([5, 6]), 0)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for queue in (first, second):
        queue.push(torch.full((2, 2), 3.0), torch.ones(2, 2), torch.tensor([7, 8]), 1)
    assert torch.equal(first.u, second.u)
    assert torch.equal(first.images, second.images)
    assert first.images.tolist() == [5, 6, 7, 8]
