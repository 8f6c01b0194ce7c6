"""Train a candidate that is given as untrained: AdamW under a one-cycle schedule, deterministic under its seed."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.data.batches import batches
from sizewise.errors import PreconditionError, blaming
from sizewise.evaluate.metrics import primary_output
from sizewise.protocols import Inputs
from sizewise.tasks.task import Task, Untrained
from sizewise.training.layout import channels_last

__all__ = ["train_module", "train_scale"]

OnEpoch = Callable[[int, int], None]


def _ignore(done: int, of: int) -> None:
    """Nobody wants to know."""


def train_scale(task: Task, scale: str, seed: int, on_epoch: OnEpoch = _ignore) -> nn.Module:
    """Build and train one candidate on the task's train loader.

    Args:
        task: with a train loader.
        scale: name of an untrained candidate.
        seed: of the weights, of the loader's shuffling (torch's global generator) and of dropout.
        on_epoch: called after every epoch with epochs done and epochs in all.

    Returns:
        the trained module, in eval mode.

    Raises:
        PreconditionError: no train loader, no targets, or a loss that is not finite.
    """
    if task.train is None:
        raise PreconditionError("this candidate is untrained and the task has no train loader", where=f"models[{scale!r}]")
    return train_module(task.build(scale, seed), task.train, task.recipe(scale), seed, f"models[{scale!r}]", on_epoch)


def train_module(
    model: nn.Module, loader: Iterable[Any], recipe: Untrained, seed: int, where: str, on_epoch: OnEpoch = _ignore
) -> nn.Module:
    """Train `model` itself on a loader by a recipe: AdamW under a one-cycle schedule, gradients clipped.

    Args:
        model: changed in place.
        loader: of (input, target) batches.
        recipe: epochs, peak learning rate and loss.
        seed: of the loader's shuffling (torch's global generator) and of dropout.
        where: names the model in errors.
        on_epoch: called after every epoch with epochs done and epochs in all.

    Returns:
        the same module, in eval mode.

    Raises:
        PreconditionError: no targets, or a loss that is not finite.
    """
    loss_of = recipe.loss or _cross_entropy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, steps = _look(loader)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.02, fused=True)
        total = recipe.epochs * steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total + 1, cycle_momentum=False)
        with channels_last(model, first):
            for epoch in range(recipe.epochs):
                model.train()
                for inputs, target in batches(loader, "train"):
                    with blaming("training failed", where):
                        loss = _step(model, inputs, target, loss_of, optimizer)
                    if not math.isfinite(loss):
                        raise PreconditionError(
                            "training diverged: the loss is not finite", where=f"{where}, epoch {epoch + 1}", hint="lower lr"
                        )
                    schedule.step()
                on_epoch(epoch + 1, recipe.epochs)
    return model.eval()


def _look(loader: Iterable[Any]) -> tuple[Inputs | None, int]:
    """Inputs of the first batch, and how many batches there are."""
    first, count = None, 0
    for inputs, _ in batches(loader, "train"):
        first, count = first or inputs, count + 1
    return first, count


def _step(model: nn.Module, inputs: Any, target: Any, loss_of: Callable[[Any, Any], Tensor], optimizer: torch.optim.Optimizer) -> float:
    if target is None:
        raise PreconditionError("the train batches carry no target", where="train", wanted="(input, target) batches")
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(inputs.call(model), target)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def _cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    logits = primary_output(outputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1).long(), label_smoothing=0.1)
