"""The delta of an adapted model: the few tensors that differ from the base model, kept in the twin's `models/`.

A delta file is a safetensors file with the new tensors themselves, not their differences, so that base and delta give
the same network to the bit everywhere; its metadata holds the base model's content hash. The base is never changed:
rolled back, or for another base model, the network is the one before, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from twinseg.errors import InputError
from twinseg.segmentation import LoadedModel
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record

FORMAT = "1"
FILE = "delta.safetensors"
ADAPTED, ROLLED_BACK = "adapted", "rolled back"


def keep_delta(twin: Twin, base: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Record:
    """Add a delta on the model of hash `base` to the twin; `facts` must say whether it was "accepted" and why."""
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    content = serialize(plain, {"twinseg_delta": FORMAT, "base": base})
    return twin.add_record("models", {"kind": ADAPTED, "base": base, **facts}, {FILE: content})


def active_delta(twin: Twin, base: str) -> Record | None:
    """The delta in use on the model of hash `base`: the last that was accepted and not rolled back."""
    stack: list[Record] = []
    for record in twin.records("models"):
        if record.content.get("base") != base:
            continue
        if record.content["kind"] == ROLLED_BACK:
            stack = [kept for kept in stack if kept.name != record.content["delta"]]
        elif record.content["accepted"]:
            stack.append(record)
    return stack[-1] if stack else None


def roll_back(twin: Twin, base: str) -> Record | None:
    """Take the delta in use on a base model out of use; the one before it, or the base model (None), is used again.

    Nothing is deleted. Raises InputError where no delta is in use.
    """
    current = active_delta(twin, base)
    if current is None:
        raise InputError(f"{twin.folder}: no adapted model is in use on the model {base[:12]}; nothing to roll back")
    twin.add_record("models", {"kind": ROLLED_BACK, "base": base, "delta": current.name})
    return active_delta(twin, base)


def adapted_network(twin: Twin, base: LoadedModel) -> tuple[LoadedModel, str | None]:
    """The base model with the patient's delta in it, and the delta's name in `models/`; the base model itself and
    None where there is no delta in use. Raises InputError for a delta that is damaged or does not fit."""
    record = active_delta(twin, base.hash)
    if record is None:
        return base, None
    tensors = read_delta(twin, record)
    network = copy.deepcopy(base.network)
    own = network.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise InputError(f"{twin.folder / record.files[FILE]}: its tensor {name} does not fit the base model")
        own[name].copy_(tensor)
    return LoadedModel(network.eval(), base.task, base.hash), record.name


def read_delta(twin: Twin, record: Record) -> dict[str, Tensor]:
    """The tensors of a delta. Raises InputError for a damaged file or one on another base."""
    path = twin.folder / record.files[FILE]
    twin.read(record.files[FILE])
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: it cannot be read ({error}); restore it from a copy") from error
    if about.get("twinseg_delta") != FORMAT or about.get("base") != record.content["base"]:
        raise InputError(f"{path}: it is no delta on the model {record.content['base'][:12]}; restore it from a copy")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: its tensor {name} holds NaN or infinity; adapt again")
    return tensors
