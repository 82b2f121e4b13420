"""The model that a federation begins with, where no trained one is at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinseg.classification import network_description, start_classifier
from twinseg.errors import InputError
from twinseg.model_file import load_model, save_model
from twinseg.network import NetworkConfig, build_network, preset
from twinseg.preprocessing import label_values
from twinseg.tasks import Task, load_task
from twinseg.transfer import take_weights


def task_of(name: str, changes: Mapping[str, Any]) -> Task:
    """A task by name or .toml file, changed in spacing (mm) or patch (voxels): one number, or one an axis.

    Raises InputError for an unknown task, or values that no task has.
    """

    def triple(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, list) else (value,) * 3

    fields: dict[str, Any] = {key: triple(changes[key]) for key in ("spacing", "patch") if key in changes}
    return dataclasses.replace(load_task(name), **fields)


def write_initial_model(
    path: Path, task: Task, network: str | Mapping[str, Any] = "small", seed: int = 0, init: Path | None = None
) -> str:
    """Write a model with random weights of a seed, and return its content hash.

    Args:
        network: a preset, or the fields of a `NetworkConfig` but for channels in and out; one level a stride, and
            strides of 2 where none are named.
        init: a model, also of another task, whose weights are taken where they fit.

    Raises:
        InputError: no such preset, fields that no network has, or a model that fits nowhere.
    """
    torch.manual_seed(seed)
    if task.kind == "classification":
        classifier, parent_hash = start_classifier(task, init)
        return _save(path, classifier, task, network_description(task), seed, parent_hash)
    channels = {"in_channels": len(task.sequences), "out_channels": len(label_values(task))}
    try:
        if isinstance(network, str):
            config = preset(network, channels["in_channels"], channels["out_channels"], task.strides)
        else:
            strides = [[2, 2, 2]] * len(network.get("channels", ()))
            config = NetworkConfig.from_dict({"strides": strides, **network, **channels})
        built = build_network(config)
    except (TypeError, KeyError) as error:
        raise InputError(f"the network cannot be built ({error}); name a preset, or channels, embedding …") from error
    parent_hash = None
    if init is not None:
        parent = load_model(init)
        take_weights(built, task, parent, init)
        parent_hash = parent.card.hash
    return _save(path, built, task, config.to_dict(), seed, parent_hash)


def _save(
    path: Path, network: nn.Module, task: Task, description: Mapping[str, Any], seed: int, parent: str | None
) -> str:
    provenance = {"program": "twinfed", "seed": seed, **({} if parent is None else {"parent": parent})}
    return save_model(path, network.state_dict(), task=task, network=description, provenance=provenance)
