"""What a network takes up from a model of another task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twinseg.model_file import Model, load_model, save_model
from twinseg.network import NetworkConfig, build_network
from twinseg.preprocessing import label_values
from twinseg.tasks import Task, load_task
from twinseg.transfer import fitted_weights, parent_channels, parent_sequences

GLIOMA, LOWER_GRADE = load_task("brats-glioma"), load_task("lgg-flair")


def config_of(task: Task) -> NetworkConfig:
    strides = ((2, 2, 1), (2, 2, 2))
    channels = len(task.sequences), len(label_values(task))
    return NetworkConfig(*channels, (4, 8), strides, embedding=12, depth=1, heads=2, deep_supervision=True)


@pytest.fixture
def parent(tmp_path: Path) -> Model:
    config = config_of(GLIOMA)
    path = tmp_path / "parent.safetensors"
    save_model(path, build_network(config).state_dict(), task=GLIOMA, network=config.to_dict(), provenance={})
    return load_model(path)


def test_a_tumour_of_one_label_is_the_oedema_of_the_parent() -> None:
    assert parent_channels(GLIOMA, LOWER_GRADE) == [0, label_values(GLIOMA).index(2)]


def test_a_task_with_more_labels_leaves_those_that_the_parent_does_not_know() -> None:
    assert parent_channels(LOWER_GRADE, GLIOMA) == [0, None, 1, None]


def test_labels_of_the_same_name_are_the_same_whatever_their_value_and_order() -> None:
    turned = replace(GLIOMA, labels=GLIOMA.labels[::-1], regions=GLIOMA.regions[:1])

    assert parent_channels(GLIOMA, turned) == [0, 3, 2, 1]


def test_organs_have_no_counterpart_in_a_tumour() -> None:
    assert parent_channels(GLIOMA, load_task("acdc-cardiac")) == [0, None, None, None]


def test_sequences_are_matched_by_name() -> None:
    theirs = [sequence.name for sequence in GLIOMA.sequences]

    assert parent_sequences(GLIOMA, LOWER_GRADE) == [theirs.index(one.name) for one in LOWER_GRADE.sequences]
    assert parent_sequences(GLIOMA, load_task("acdc-cardiac")) == [None]


def test_a_network_answers_as_the_parent_does_for_what_both_know(parent: Model) -> None:
    old, new = build_network(config_of(GLIOMA)), build_network(config_of(LOWER_GRADE))
    old.load_state_dict(parent.tensors)
    new.load_state_dict({**new.state_dict(), **fitted_weights(parent, new.state_dict(), LOWER_GRADE)})
    image = torch.randn(1, 3, 16, 16, 8)
    theirs = torch.zeros(1, 4, 16, 16, 8)
    theirs[:, parent_sequences(GLIOMA, LOWER_GRADE)] = image

    with torch.no_grad():
        answers, expected = new(image), old(theirs)

    for answer, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, wanted[:, [0, 2]])


def test_channels_without_a_counterpart_keep_their_random_weights(parent: Model) -> None:
    organs = load_task("acdc-cardiac")
    own = build_network(config_of(organs)).state_dict()

    fitting = fitted_weights(parent, own, organs)

    assert torch.equal(fitting["stem.convolution.weight"], own["stem.convolution.weight"])
    assert torch.equal(fitting["heads.0.weight"][1:], own["heads.0.weight"][1:])
    assert torch.equal(fitting["heads.0.weight"][0], parent.tensors["heads.0.weight"][0].float())
