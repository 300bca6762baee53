"""Two processes with half of a batch each, through DistributedDataParallel: the gradients of one process with the whole.

In float64: batches of another size are summed in another order, which float32 shows in its last digits.
"""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rad.models.lora import LoRA, inject, trainable
from rad.networks.unet import patch
from tests.tiny_networks import small_unet

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, 16, 16, generator=SOURCE, dtype=torch.float64)
TIMES = 1000 * torch.rand(4, 2, generator=SOURCE)
INDEX = (torch.rand(4, 16, 16, generator=SOURCE) > 0.5).long()


def network():
    model = inject(patch(small_unet()), LoRA(rank=2)).double()
    source = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
    return model.train()


def loss(model, rows):
    return model(X[rows], TIMES[rows], index=INDEX[rows]).sample.square().mean()


def work(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(network(), static_graph=True)
    loss(model, slice(2 * rank, 2 * rank + 2)).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in trainable(model.module).items()}, path)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_two_processes_equal_those_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "gradients.pt"
    mp.spawn(work, args=(port, path), nprocs=2)
    together = torch.load(path, weights_only=True)
    model = network()
    loss(model, slice(0, 4)).backward()
    largest = max(float(gradient.abs().max()) for gradient in together.values())
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, f"{name} is not used"
        assert together[name].dtype == torch.float64
        torch.testing.assert_close(together[name], parameter.grad, rtol=0, atol=1e-9 * largest)
