"""Processes that train one network together (torch's DDP): who they are, and what each does of a batch."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, distributed, nn


@dataclass(frozen=True)
class Team:
    """The processes that train together; by default this one alone, which changes nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes the checkpoints."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """This process's own device: on CUDA the one of its rank."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.rank)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model as the loss sees it: its gradients become the mean over all processes.

        On CUDA batch normalisation is over the whole batch (SyncBatchNorm). On a CPU, where torch has none, each
        process normalises its own share, and the running statistics are those of the first.
        """
        if self.size == 1:
            return model
        device = next(p.device for p in model.parameters())
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
        return nn.parallel.DistributedDataParallel(model)

    def share(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a batch [B], and what its mean loss on them weighs.

        The mean of the weighted gradients over all processes is the gradient of the batch's mean loss, however uneven
        the shares are. A process without any row lends a hand with one that weighs nothing.
        """
        if self.size == 1:
            return batch, 1.0
        rows = batch[self.rank :: self.size]
        return (rows, self.size * len(rows) / len(batch)) if len(rows) else (batch[:1], 0.0)

    def draws(self, shared: Generator, seed: int, epoch: int) -> Generator:
        """What the loss draws from in an epoch: each process from its own, which follows from seed, epoch and rank.

        `shared` decides the order of the samples and stays the same everywhere.
        """
        if self.size == 1:
            return shared
        own = int.from_bytes(hashlib.sha256(f"{seed} {epoch} {self.rank}".encode()).digest()[:7], "big")
        torch.manual_seed(own)
        return Generator(device=shared.device).manual_seed(own)

    def total(self, figures: Tensor) -> Tensor:
        """The figures [...] summed over all processes; the same everywhere, to the bit."""
        if self.size > 1:
            there = figures.cuda() if distributed.get_backend() == "nccl" else figures
            distributed.all_reduce(there)
            figures = there.to(figures.device)
        return figures

    def wait(self) -> None:
        """Return when all have come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()
