"""MONAI bundles: MONAI's own tools run what we export, we read what they leave, and nothing foreign is executed."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from twinseg.classification import build_classifier, class_probabilities, load_classifier, network_description
from twinseg.classification_pictures import prepare_picture
from twinseg.errors import InputError, OutOfSpaceError
from twinseg.model_file import load_model, read_card, save_model
from twinseg.monai_bundle import export_bundle, import_bundle
from twinseg.network import NetworkConfig, build_network
from twinseg.preprocessing import normalize
from twinseg.tasks import Label, Region, Sequence, Task

TASK = Task(
    name="toy",
    title="Toy $task @ home",
    kind="segmentation",
    modality="MR",
    sequences=(Sequence("t1", "T1"), Sequence("flair", "FLAIR")),
    spacing=(2.0, 2.0, 2.0),
    patch=(16, 16, 16),
    labels=(Label(1, "NCR", "Necrosis", (255, 0, 0)), Label(4, "ET", "Enhancing", (0, 255, 0))),
    regions=(Region("TC", "Core", (1, 4)),),
    strides=((2, 2, 2), (2, 2, 2)),
)
CONFIG = NetworkConfig(
    in_channels=2, out_channels=3, channels=(8, 8), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2
)
CHEST = Task(
    name="chest",
    title="Chest CT",
    kind="classification",
    modality="CT",
    sequences=(Sequence("ct", "CT"),),
    classes=("cancer", "normal"),
    spacing=(1.0, 1.0, 1.0),
    patch=(96, 64, 1),
    normalization="window",
    window=(0.0, 255.0),
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # MONAI's own


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(CONFIG).eval()


@pytest.fixture
def model(tmp_path: Path, network: torch.nn.Module) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, network.state_dict(), task=TASK, network=CONFIG.to_dict(), provenance={"seed": 3, "dice": 0.8})
    return path


@pytest.fixture
def bundle(tmp_path: Path, model: Path) -> Path:
    folder = tmp_path / "un paquet"
    export_bundle(model, folder)
    return folder


def write_case(folder: Path, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """A case of random images; returns them as (sequences, X, Y, Z)."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).random((2, *shape), np.float32) * 100
    for sequence, image in zip(TASK.sequences, images, strict=True):
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{sequence.name}.nii.gz")
    return images


def run_bundle(bundle: Path, data: Path, output: Path) -> None:
    folders = {"bundle_root": str(bundle), "dataset_dir": str(data), "output_dir": str(output), "device": "cpu"}
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"), meta_file=str(bundle / "configs/metadata.json"), **folders
    )


def test_what_was_written_is_told(model: Path, tmp_path: Path) -> None:
    written = export_bundle(model, tmp_path / "bundle")

    assert set(written["files"]) == {path for path in (tmp_path / "bundle").rglob("*") if path.is_file()}
    assert written["hash"] == read_card(model).hash


def test_layout_is_that_of_a_bundle(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))

    assert {"LICENSE", "docs/README.md", "configs/inference.json", "models/model.pt"} <= files
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "T1", "1": "FLAIR"}
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert "0.8" in (bundle / "docs/README.md").read_text(encoding="utf-8")


def test_monai_verifies_the_network_against_the_metadata(bundle: Path) -> None:
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        device="cpu",
        n=4,
    )


def test_monai_loads_the_network_with_its_weights(bundle: Path, network: torch.nn.Module) -> None:
    loaded = monai.bundle.load(bundle.name, model=build_network(CONFIG), bundle_dir=bundle.parent, device="cpu").eval()

    image = torch.rand(1, 2, 16, 16, 16)
    assert torch.equal(loaded(image), network(image))


def test_monai_runs_it_and_gives_what_the_network_says(bundle: Path, tmp_path: Path, network: torch.nn.Module) -> None:
    images = write_case(tmp_path / "data/Case 1", (16, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0]))

    run_bundle(bundle, tmp_path / "data", tmp_path / "eval")

    image = torch.from_numpy(np.stack([normalize(image, TASK) for image in images]))[None]
    expected = np.array([0, 1, 4])[network(image)[0].argmax(0).numpy()]
    written = nibabel.load(tmp_path / "eval/Case 1.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), expected)
    assert len(np.unique(expected)) > 1


def test_the_result_lies_on_the_grid_of_the_input(bundle: Path, tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 10], [0, 0, 1.5, 0], [0, 1, 0, 5], [0, 0, 0, 1]])
    write_case(tmp_path / "data/a", (30, 28, 20), affine)
    write_case(tmp_path / "data/b", (31, 28, 20), affine)

    run_bundle(bundle, tmp_path / "data", tmp_path / "eval")

    shapes = {name: nibabel.load(tmp_path / f"eval/{name}.nii.gz").shape for name in "ab"}
    assert shapes == {"a": (30, 28, 20), "b": (31, 28, 20)}
    assert np.allclose(nibabel.load(tmp_path / "eval/a.nii.gz").affine, affine, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_there_and_back_is_the_same_model(tmp_path: Path, network: torch.nn.Module, dtype) -> None:
    model, back = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    content_hash = save_model(
        model, network.state_dict(), task=TASK, network=CONFIG.to_dict(), provenance={"seed": 3}, dtype=dtype
    )

    export_bundle(model, tmp_path / "bundle")

    assert import_bundle(tmp_path / "bundle", back) == content_hash
    before, after = load_model(model), load_model(back)
    assert after.card == replace(before.card, path=back)
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)


def test_weights_trained_further_name_their_parent_and_claim_nothing(bundle: Path, model: Path, tmp_path: Path) -> None:
    weights = torch.load(bundle / "models/model.pt", weights_only=True)
    torch.save({name: tensor + 0.1 for name, tensor in weights.items()}, bundle / "models/model.pt")

    import_bundle(bundle, tmp_path / "further.safetensors")

    further = load_model(tmp_path / "further.safetensors", expected_task=TASK)
    assert further.card.provenance["parent"] == read_card(model).hash
    assert "dice" not in further.card.provenance
    name = next(iter(weights))
    assert torch.equal(further.tensors[name], weights[name] + 0.1)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "classifier.safetensors"
    tensors = build_classifier(CHEST).state_dict()
    save_model(path, tensors, task=CHEST, network=network_description(CHEST), provenance={})
    return path


def test_classification_runs_on_pictures_prepared_as_ours_are(
    tmp_path: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    sizes = {"as the patch": (64, 96), "wide": (50, 200), "high": (120, 40)}
    grey = {name: random.integers(0, 255, size, np.uint8) for name, size in sizes.items()}
    for name, picture in grey.items():
        Image.fromarray(picture).save(pictures / f"{name}.png")

    export_bundle(classifier, tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", pictures, tmp_path / "eval")

    images = np.stack([prepare_picture(grey[name].astype(np.float32), CHEST) for name in sorted(grey)])
    expected = class_probabilities(load_classifier(classifier).network, images)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    printed = [json.loads(line.replace("'", '"')) for line in lines]
    assert [list(row) for row in printed] == [list(CHEST.classes)] * 3
    np.testing.assert_allclose([list(row.values()) for row in printed], expected, atol=1e-5)


def test_a_classifier_s_metadata_fit_its_network(tmp_path: Path, classifier: Path) -> None:
    export_bundle(classifier, tmp_path / "bundle")

    configs = tmp_path / "bundle/configs"
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
    )
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 96]  # rows, columns
    assert "twinseg segment" not in (tmp_path / "bundle/docs/README.md").read_text(encoding="utf-8")


def test_a_classifier_there_and_back_is_the_same_model(tmp_path: Path, classifier: Path) -> None:
    written = export_bundle(classifier, tmp_path / "bundle")

    assert import_bundle(tmp_path / "bundle", tmp_path / "back.safetensors") == written["hash"]
    assert load_classifier(tmp_path / "back.safetensors").task == CHEST


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"variant": "$__import__('os').abort()"},
        {"channels": ["@bundle_root"]},
        {"depth": {"_target_": "os.abort"}},
        {"_target_": "os.abort"},
        {"kind": "unheard-of"},
    ],
)
def test_a_model_cannot_bring_code_into_a_bundle(tmp_path: Path, entry: dict) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, {"w": torch.ones(1)}, task=TASK, network={**CONFIG.to_dict(), **entry}, provenance={})

    with pytest.raises(InputError, match="model"):
        export_bundle(path, tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_texts_of_the_task_are_inert_in_the_configurations(bundle: Path) -> None:
    assert "Toy task  home" in (bundle / "configs/metadata.json").read_text(encoding="utf-8")
    assert "Toy" not in (bundle / "configs/inference.json").read_text(encoding="utf-8")


def test_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("keep me")

    for target in (tmp_path / "full", model):
        with pytest.raises(InputError, match="Name a new folder"):
            export_bundle(model, target)

    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_full_disk_leaves_no_half_bundle(model: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutOfSpaceError):
            export_bundle(model, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not (tmp_path / "bundle").exists()


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


def refused(bundle: Path) -> str:
    """The one line that a user sees; no model file is left."""
    with pytest.raises(InputError) as caught:
        import_bundle(bundle, bundle.parent / "imported.safetensors")
    assert "\n" not in str(caught.value)
    assert not (bundle.parent / "imported.safetensors").exists()
    return str(caught.value)


def test_a_pickled_object_is_refused_and_does_not_run(bundle: Path, tmp_path: Path) -> None:
    weights, touched = bundle / "models/model.pt", tmp_path / "touched"
    torch.save({"weight": Bomb(touched)}, weights)
    assert "not a plain state dict" in refused(bundle)

    weights.write_bytes(pickle.dumps(Bomb(touched)))
    assert "not a plain state dict" in refused(bundle)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([torch.ones(2)], "not a plain state dict"),
        ({"weights": {"w": torch.ones(2)}}, "not a plain state dict"),
        ({"w": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"w": torch.ones(2, dtype=torch.int32)}, "int32"),
        ({"w": torch.ones(2).to_sparse()}, "not a plain state dict"),
    ],
)
def test_weights_that_are_no_model_are_refused(bundle: Path, weights, words: str) -> None:
    torch.save(weights, bundle / "models/model.pt")

    message = refused(bundle)
    assert words in message
    assert message.startswith(str(bundle / "models/model.pt"))


def test_a_bundle_of_others_a_cut_one_and_a_damaged_one_are_refused(bundle: Path, tmp_path: Path) -> None:
    assert "not a bundle of TwinSegSlicer" in refused(tmp_path / "nowhere")

    weights = bundle / "models/model.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "not a plain state dict" in refused(bundle)
    weights.unlink()
    assert "is missing" in refused(bundle)

    for damaged in ("{", "[]", '{"network": 1}', '{"network": {}, "provenance": {}}'):
        (bundle / "models/card.json").write_text(damaged)
        assert "damaged" in refused(bundle)
