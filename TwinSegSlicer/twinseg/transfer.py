"""Transfer learning: a network for one task takes up the weights of a model that was made for another one.

What both have is matched by its name: sequences in the first layer, labels and regions in the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from twinseg.errors import InputError
from twinseg.model_file import Model
from twinseg.network import ViTUNet, count_parameters
from twinseg.preprocessing import label_values
from twinseg.tasks import Task


def take_weights(network: ViTUNet, task: Task, parent: Model, path: Path) -> None:
    """Load the weights of a model, whose file is named, into a network of a task, where they fit.

    Raises InputError where less than half of the network's weights are found in it.
    """
    fitting = fitted_weights(parent, network.state_dict(), task)
    if 2 * sum(tensor.numel() for tensor in fitting.values()) < count_parameters(network):
        raise InputError(f"{path}: its network is too different to start from; use another model")
    network.load_state_dict({**network.state_dict(), **fitting})


def fitted_weights(parent: Model, own: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    """The parent's tensors that serve a network of other sequences, other labels or other slices.

    The first layer's input channels are matched by their sequences' names, the last layers' output channels as
    `parent_channels` says; those without a counterpart stay as they are. A kernel that reaches over slices is added up
    along them where the own one does not (the same answer where the slices are alike). What else differs in shape is
    left out.
    """
    fitting: dict[str, Tensor] = {}
    for name in own.keys() & parent.tensors.keys():
        wanted, tensor = own[name], parent.tensors[name].float()
        if tensor.dim() == wanted.dim() == 5:
            for axis in (2, 3, 4):
                if wanted.shape[axis] == 1:
                    tensor = tensor.sum(axis, keepdim=True)
        if name == "stem.convolution.weight":
            tensor = _matched(tensor, wanted, parent_sequences(parent.card.task, task), axis=1)
        elif name.startswith("heads."):
            tensor = _matched(tensor, wanted, parent_channels(parent.card.task, task), axis=0)
        if tensor.shape == wanted.shape:
            fitting[name] = tensor
    return fitting


def parent_sequences(parent: Task, task: Task) -> list[int | None]:
    """For each sequence of a task its number in the parent's, by name; None where that has none."""
    names = [sequence.name for sequence in parent.sequences]
    return [names.index(sequence.name) if sequence.name in names else None for sequence in task.sequences]


def parent_channels(parent: Task, task: Task) -> list[int | None]:
    """For each output channel of a task's network the parent's channel that means it, or None.

    Background is background. A label's counterpart has its name; else it is the one that both tasks have in a region
    of the same name and in none that is nested in it: a whole tumour that is one label begins as the parent's oedema,
    whose channel tells tumour from healthy tissue.
    """
    by_name = {label.name: label.value for label in parent.labels}
    names = {label.value: label.name for label in task.labels}
    theirs, ours = _outermost(parent), _outermost(task)
    by_region = {ours[region]: theirs[region] for region in ours.keys() & theirs.keys()}
    values = label_values(parent)
    counterparts = [by_name.get(names[value], by_region.get(value)) for value in label_values(task)[1:]]
    return [0, *(None if value is None else values.index(value) for value in counterparts)]


def _outermost(task: Task) -> dict[str, int]:
    """Region's name -> its label value that is in no region nested in it, where there is exactly one."""
    found = {}
    for region in task.regions:
        nested = [set(one.labels) for one in task.regions if set(one.labels) < set(region.labels)]
        own = set(region.labels).difference(*nested)
        if len(own) == 1:
            found[region.name] = own.pop()
    return found


def _matched(tensor: Tensor, own: Tensor, numbers: list[int | None], axis: int) -> Tensor:
    """`own` with the parent's slices of these numbers along an axis; `tensor` itself where the other axes differ."""
    others = [size for place, size in enumerate(own.shape) if place != axis]
    if [size for place, size in enumerate(tensor.shape) if place != axis] != others:
        return tensor
    matched = own.clone()
    for place, number in enumerate(numbers):
        if number is not None:
            matched.select(axis, place).copy_(tensor.select(axis, number))
    return matched
