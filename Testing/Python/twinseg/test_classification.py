"""A classifier learns shapes, resumes exactly, is scored with and without copies, and tells bad input in one line."""

from __future__ import annotations

import csv
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twinseg.classification import (
    ClassificationConfig,
    ClassificationTrainer,
    build_classifier,
    class_probabilities,
    load_classifier,
    network_description,
    start_classifier,
)
from twinseg.classification_evaluation import evaluate_classifier
from twinseg.classification_pictures import LabelledPictures, find_pictures, prepare_picture, read_pictures
from twinseg.classification_run import shrunk, train_classifier
from twinseg.errors import Cancelled, InputError
from twinseg.model_file import read_card, save_model
from twinseg.tasks import Sequence, Task, load_task
from twinseg.training_run import TrainingRequest

CHEST = Path(__file__).parents[4] / "shared/data/chest-ct"
TASK = Task(
    name="shapes",
    title="Discs and squares",
    kind="classification",
    modality="CT",
    sequences=(Sequence("ct", "CT slice"),),
    spacing=(1.0, 1.0, 1.0),
    patch=(32, 32, 1),
    classes=("disc", "square"),
    normalization="window",
    window=(0.0, 255.0),
    flip_axes=(0,),
)
STEPS = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shape(target: int, random: np.random.Generator) -> np.ndarray:
    """A bright disc, or the bright frame of a square, of a random size and place, with noise: (32, 32) uint8."""
    rows, columns = np.mgrid[:32, :32] - random.uniform(12, 19, (2, 1, 1))
    radius = random.uniform(6, 10)
    distance = np.hypot(rows, columns) if target == 0 else np.maximum(abs(rows), abs(columns))
    picture = np.where(distance < radius, 200, 40) + random.normal(0, 8, (32, 32))
    if target == 1:
        picture[distance < radius / 2] = 40
    return np.clip(picture, 0, 255).astype(np.uint8)


def shapes(number: int, seed: int) -> LabelledPictures:
    random = np.random.default_rng(seed)
    targets = np.arange(number) % 2
    images = [prepare_picture(shape(target, random).astype(np.float32), TASK) for target in targets]
    return LabelledPictures(np.stack(images), targets)


def trainer(steps: int = STEPS, validation: LabelledPictures | None = None) -> ClassificationTrainer:
    torch.manual_seed(0)
    config = ClassificationConfig(epochs=steps, validations=2)  # one batch of 16 an epoch
    return ClassificationTrainer(build_classifier(TASK), TASK, shapes(16, seed=1), validation, config)


def write_shapes(folder: Path, **numbers: int) -> Path:
    """PART/CLASS/N.png, with so many pictures of each class in each part."""
    random = np.random.default_rng(3)
    for part, number in numbers.items():
        for target, name in enumerate(TASK.classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                Image.fromarray(shape(target, random)).save(folder / part / name / f"{index}.png")
    return folder


def write_model(path: Path, task: Task = TASK) -> Path:
    torch.manual_seed(0)
    tensors = build_classifier(task).state_dict()
    save_model(path, tensors, task=task, network=network_description(task), provenance={})
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "des données", train=4, valid=2, test=3)


def fault(call, *arguments, **options) -> str:
    """The one line that a user sees."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_keeps_its_proportions_and_is_filled_with_its_darkest_value() -> None:
    wide = np.full((20, 40), 255, np.float32)
    wide[0, 0] = 51

    image = prepare_picture(wide, TASK)

    assert image.shape == (1, 32, 32)
    np.testing.assert_allclose(image[0, :8], 51 / 255 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(image[0, 9:24], 1.0, atol=1e-6)
    np.testing.assert_allclose(image[0, 24:], 51 / 255 * 2 - 1, atol=1e-6)


def test_a_colour_picture_is_read_as_grey(data: Path) -> None:
    file = data / "train/disc/0.png"
    before = read_pictures(find_pictures(data, TASK), TASK)
    Image.open(file).convert("RGB").save(file)

    after = read_pictures(find_pictures(data, TASK), TASK)

    np.testing.assert_allclose(after.images, before.images, atol=1 / 255)


def test_the_small_preset_keeps_to_128_pixels_and_base_to_the_patch() -> None:
    chest = load_task("chest-ct-cancer")
    assert shrunk(chest, "small").patch == (128, 128, 1)
    assert shrunk(chest, "base").patch == (224, 224, 1)
    assert "preset 'huge'" in fault(shrunk, chest, "huge")


# --- training --------------------------------------------------------------------------------------------------------


def test_discs_and_squares_are_learned() -> None:
    unseen = shapes(40, seed=2)
    learner = trainer(validation=unseen)

    learner.run()

    assert learner.state.best_score > 0.9
    learner.network.load_state_dict(learner.best_weights)
    predicted = class_probabilities(learner.network, unseen.images).argmax(1)
    assert np.mean(predicted == unseen.targets) == pytest.approx(learner.state.best_score)


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    validation = shapes(8, seed=2)
    whole = trainer(steps=6, validation=validation)
    whole.run()
    first = trainer(steps=6, validation=validation)
    first.run(lambda progress: progress.step == 4)
    first.save(tmp_path / "checkpoint")

    torch.manual_seed(5)
    config = ClassificationConfig(epochs=6, validations=2)
    second = ClassificationTrainer(build_classifier(TASK), TASK, shapes(16, seed=1), validation, config)
    second.resume(tmp_path / "checkpoint")
    second.run()

    assert second.state.step == whole.state.step == 6
    for ours, wanted in (
        (second.network.state_dict(), whole.network.state_dict()),
        (second.averaged_weights, whole.averaged_weights),
        (second.best_weights, whole.best_weights),
    ):
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_training_from_a_folder_writes_a_model_that_gives_the_same_probabilities(data: Path, tmp_path: Path) -> None:
    request = TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=2)

    measured = train_classifier(request)

    assert measured["steps"] == 2
    assert measured["cases"] == {"train": 8, "validation": 4, "test": 6}
    assert measured["validation"].startswith("validation accuracy ")
    assert request.curve.read_bytes().startswith(b"\x89PNG")
    assert not request.checkpoint.exists()
    card = read_card(request.output)
    assert card.hash == measured["model_hash"]
    assert card.provenance["metrics"]["validation_accuracy"] == measured["validation_accuracy"]
    validation = read_pictures([case for case in find_pictures(data, TASK) if case.part == "validation"], TASK)
    probabilities = class_probabilities(load_classifier(request.output).network, validation.images)
    assert np.mean(probabilities.argmax(1) == validation.targets) == measured["validation_accuracy"]


def test_a_stopped_training_goes_on_from_its_checkpoint(data: Path, tmp_path: Path) -> None:
    request = TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=3)
    with pytest.raises(Cancelled, match="--resume"):
        train_classifier(request, lambda done, stage: stage.startswith("step 2"))
    assert request.checkpoint.exists()
    assert not request.output.exists()

    first_steps: list[str] = []
    resumed = TrainingRequest(data, TASK, request.output, epochs=3, resume=True)
    train_classifier(resumed, lambda done, stage: first_steps.append(stage) if stage.startswith("step") else None)

    assert [stage.partition(",")[0] for stage in first_steps] == ["step 3"]
    assert request.output.exists()


def test_ctrl_c_leaves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    request = TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=3)

    def interrupt(done: float, stage: str) -> None:
        if stage.startswith("step 2"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Cancelled, match="--resume"):
        train_classifier(request, interrupt)

    assert request.checkpoint.exists()
    assert not request.output.exists()


def test_copies_of_training_pictures_do_not_choose_the_weights(data: Path, tmp_path: Path) -> None:
    for name in TASK.classes:
        for index in range(2):
            copy = (data / "train" / name / f"{index}.png").read_bytes()
            (data / "valid" / name / f"{index}.png").write_bytes(copy)

    measured = train_classifier(TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=1))

    assert measured["validation"] == "nothing to validate on"
    assert measured["validation_accuracy"] is None


def test_a_model_of_other_classes_gives_all_but_its_last_layer(data: Path, tmp_path: Path) -> None:
    source = dataclasses.replace(TASK, name="source", classes=("benign", "malignant", "normal"))
    parent = load_classifier(write_model(tmp_path / "source.safetensors", source))

    torch.manual_seed(1)
    network, digest = start_classifier(TASK, tmp_path / "source.safetensors")

    assert digest == parent.hash
    weights, given = network.state_dict(), parent.network.state_dict()
    assert weights["class_layers.out.weight"].shape == (2, 1024)
    assert all(torch.equal(weights[name], given[name]) for name in given if not name.startswith("class_layers"))


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_scores_a_part_with_and_without_copies_of_training_pictures(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors")
    (data / "test/disc/0.png").write_bytes((data / "train/disc/1.png").read_bytes())

    measured = evaluate_classifier(data, model)

    assert measured["part"] == "test"
    assert measured["model"] == read_card(model).hash
    assert measured["n"] == np.sum(measured["confusion"]) == 6
    assert measured["deduplicated"]["n"] == 5
    assert measured["deduplicated"]["classes"]["disc"]["n"] == 2
    assert set(measured["deduplicated"]) == set(measured) - {"part", "model", "deduplicated"}
    everything = evaluate_classifier(data, model, part="all")
    assert everything["n"] == 18
    assert "deduplicated" not in everything


def test_evaluation_of_copies_alone_leaves_nothing(data: Path, tmp_path: Path) -> None:
    for file in (data / "test").rglob("*.png"):
        file.write_bytes((data / "train/disc/1.png").read_bytes())
    measured = evaluate_classifier(data, write_model(tmp_path / "model.safetensors"))
    assert measured["n"] == 6
    assert measured["deduplicated"] == {"n": 0}


@pytest.mark.skipif(not CHEST.is_dir(), reason="the chest CT pictures (shared/data) are not on this machine")
def test_copies_in_the_real_data_are_those_that_its_own_list_knows() -> None:
    rows = [row for row in csv.DictReader((CHEST / "images.csv").open()) if row["class"] == "normal"]
    digests = {part: [row["pixel_sha1"] for row in rows if row["split"] == part] for part in ("train", "test")}
    task = shrunk(load_task("chest-ct-cancer"), "small")
    normal = [case for case in find_pictures(CHEST, task) if case.target == task.classes.index("normal")]
    train, test = (read_pictures([case for case in normal if case.part == part], task) for part in ("train", "test"))

    assert test.copies_of(train).sum() == sum(digest in digests["train"] for digest in digests["test"]) == 46


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_damaged_picture_is_named(data: Path, tmp_path: Path) -> None:
    file = data / "train/disc/0.png"
    file.write_bytes(file.read_bytes()[:90])
    message = fault(train_classifier, TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=1))
    assert message.startswith(f"{file}: this is no whole picture")


def test_another_kind_of_file_under_a_picture_name_is_named(data: Path, tmp_path: Path) -> None:
    file = data / "test/square/2.png"
    file.write_text("a text")
    message = fault(evaluate_classifier, data, write_model(tmp_path / "model.safetensors"))
    assert message.startswith(f"{file}: this is no whole picture")


def test_a_folder_of_an_unknown_class_is_named(data: Path, tmp_path: Path) -> None:
    folder = data / "train/triangle"
    folder.mkdir()
    (folder / "0.png").write_bytes((data / "train/disc/0.png").read_bytes())
    message = fault(train_classifier, TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=1))
    assert message.startswith(f"{folder}: no class of shapes has this name (disc, square);")


def test_a_curve_beside_the_data_is_no_class(data: Path) -> None:
    (data / "model.png").write_bytes((data / "train/disc/0.png").read_bytes())
    assert len(find_pictures(data, TASK)) == 18


def test_a_class_without_training_pictures_is_named(data: Path, tmp_path: Path) -> None:
    for file in (data / "train/square").iterdir():
        file.unlink()
    message = fault(train_classifier, TrainingRequest(data, TASK, tmp_path / "model.safetensors", epochs=1))
    assert message.startswith(f"{data}: no training picture is of the class square;")


def test_a_segmentation_model_is_refused(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_model(model, {"a": torch.ones(2)}, task=load_task("lgg-flair"), network={"kind": "vit-unet"}, provenance={})
    message = fault(evaluate_classifier, data, model)
    assert message.startswith(f"{model}: this model is no classifier of 2-D pictures;")
    request = TrainingRequest(data, TASK, tmp_path / "new.safetensors", init=model, epochs=1)
    assert fault(train_classifier, request) == message


def test_a_model_whose_tensors_do_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_model(model, {"a": torch.ones(2)}, task=TASK, network=network_description(TASK), provenance={})
    assert "do not fit its network" in fault(evaluate_classifier, data, model)


def test_a_patch_too_small_for_the_network_is_refused(data: Path, tmp_path: Path) -> None:
    tiny = dataclasses.replace(TASK, patch=(16, 16, 1))
    message = fault(train_classifier, TrainingRequest(data, tiny, tmp_path / "model.safetensors", epochs=1))
    assert message.startswith("task shapes: DenseNet-121 needs 32 pixels a side;")
