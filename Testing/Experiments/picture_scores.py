"""What the models of a federation of picture classifiers are worth, round by round, and when it had converged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from twinfed.aggregator.store import Store
from twinseg.classification import build_classifier, class_probabilities
from twinseg.classification_pictures import LabelledPictures
from twinseg.metrics import classification_metrics
from twinseg.tasks import Task

Scores = dict[str, Any]


def served_models(federation: Path, sites: Sequence[str]) -> list[dict[str, Path]]:
    """For each round of an aggregator's folder the file of the model that serves each site after it."""
    store = Store(federation)
    try:
        rounds = []
        for row in store.rows("SELECT models, next_memory FROM rounds WHERE state = 'published' ORDER BY number"):
            models, clusters = json.loads(row["models"]), json.loads(row["next_memory"]).get("clusters", {})
            rounds.append({site: store.file(models[clusters.get(site, "0")]) for site in sites})
        return rounds
    finally:
        store.close()


def score_sites(served: Mapping[str, Path], pictures: LabelledPictures, task: Task, device: str) -> dict[str, Scores]:
    """`score` of each site's model on the same pictures; a model that serves several sites is asked once."""
    found = {model: score(model, pictures, task, device) for model in sorted(set(served.values()))}
    return {site: found[model] for site, model in served.items()}


def score(model: Path, pictures: LabelledPictures, task: Task, device: str) -> Scores:
    """`metrics.classification_metrics` and the cross-entropy ("loss") of a model's file."""
    network = build_classifier(task)
    network.load_state_dict({**network.state_dict(), **load_file(model)})
    probabilities = class_probabilities(network, pictures.images, device)
    right = probabilities[np.arange(len(pictures)), pictures.targets]
    measured = classification_metrics(probabilities.argmax(1), pictures.targets, task.classes)
    return {**measured, "loss": float(-np.log(np.maximum(right, 1e-12)).mean())}


def mean_of(scores: Mapping[str, Any], shares: Mapping[str, float]) -> Any:
    """Mean over sites, by their shares (sum 1), of every number in scores of one shape."""
    first = next(iter(scores.values()))
    if isinstance(first, dict):
        return {key: mean_of({site: one[key] for site, one in scores.items()}, shares) for key in first}
    value = sum(shares[site] * np.asarray(one, float) for site, one in scores.items())
    return np.asarray(value).round(9).tolist()


def in_own_mix(scores: Mapping[str, Scores], mix: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Each site's accuracy if its patients' classes came as in its training pictures: recalls weighted by `mix`."""
    return {
        site: float(np.dot(mix[site], [one["recall"] for one in scores[site]["classes"].values()])) for site in scores
    }


def converged_after(
    accuracy: Sequence[float], loss: Sequence[float], *, gain: float, change: float, rounds: int
) -> int | None:
    """The round (1 is the first) after which training had converged; None where it had not.

    By the paper's definition (section 4.3): the accuracy's improvement is less than `gain`, and the loss changes by
    less than `change`, from one round to the next, for so many `rounds` in sequence.
    """
    calm = 0
    for number in range(1, len(accuracy)):
        still = accuracy[number] - accuracy[number - 1] < gain and abs(loss[number] - loss[number - 1]) < change
        calm = calm + 1 if still else 0
        if calm == rounds:
            return number + 1
    return None
