"""The worker's models: kept warm from request to request, and interrupted in the midst of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from twinseg import inference
from twinseg.errors import InputError
from twinseg.memory import give_freed_memory_back
from twinseg.segmentation import LoadedModel, load_network, starter_model
from twinseg.tasks import Task


def model_of(path: str | None, task: Task) -> LoadedModel:
    """The model of a file, or the task's starter model. Raises InputError."""
    return warm_model(*file_state(Path(path or starter_model(task.name))), task)


@lru_cache(maxsize=2)
def warm_model(path: Path, modified: int, size: int, task: Task) -> LoadedModel:
    """The network of a model file, made for the task; a file that was replaced is read anew, as its state differs."""
    return load_network(path, task)


def file_state(path: Path) -> tuple[Path, int, int]:
    """A model file, when it was last changed, in ns, and its size in bytes. Raises InputError where it is not there."""
    try:
        path = path.resolve()
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the model cannot be read ({reason}); choose another") from error
    return path, state.st_mtime_ns, state.st_size


@contextmanager
def computing(network: nn.Module, device: torch.device, look: Callable[[], None]) -> Iterator[None]:
    """Let the network compute: `look` is called before each of its layers, and the memory is given back after all."""
    try:
        with looked_in_on(network, look):
            yield
    finally:
        inference.release_memory(device)
        give_freed_memory_back()


@contextmanager
def looked_in_on(network: nn.Module, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before each layer of the network, so that a pass stops in its midst where that raises."""

    def before(layer: nn.Module, inputs: object) -> None:
        look()

    hooks = [layer.register_forward_pre_hook(before) for layer in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
