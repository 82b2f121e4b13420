"""Model files: what goes in comes out, every fault is told in one line, and nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from twinseg.errors import InputError, OutOfSpaceError
from twinseg.home import data_folder
from twinseg.model_file import LARGEST_HEADER, load_model, read_card, save_model, store_model
from twinseg.network import NetworkConfig, build_network
from twinseg.tasks import Label, Region, Sequence, Task

TASK = Task(
    name="toy",
    title="Toy task with an “é”",
    kind="segmentation",
    modality="MR",
    sequences=(Sequence("t1", "T1"), Sequence("flair", "FLAIR")),
    spacing=(1.0, 1.0, 1.0),
    patch=(32, 32, 32),
    labels=(Label(1, "WT", "Whole tumour", (255, 0, 0)),),
    regions=(Region("WT", "Whole tumour", (1,)),),
    strides=((2, 2, 2),),
)
NETWORK = {"kind": "vit-unet", "in_channels": 2, "strides": ((2, 2, 2),)}
PROVENANCE = {"seed": 7, "dice": 0.84, "parent": None, "data": ["site A", "Besançon"]}
TENSORS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor(0.5), "empty": torch.zeros(0, 4)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "un modèle.safetensors"
    save_model(path, TENSORS, task=TASK, network=NETWORK, provenance=PROVENANCE)
    return path


def fault(path: Path, reader=load_model, **options) -> str:
    """The one line that a user sees."""
    with pytest.raises(InputError) as caught:
        reader(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def with_metadata(path: Path, **changes: str) -> Path:
    """Rewrite a model file with other metadata, as somebody would who alters it."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    return path


def test_card_and_tensors_come_back_as_they_were(model: Path) -> None:
    loaded = load_model(model, expected_task=TASK)

    assert loaded.card == read_card(model)
    assert loaded.card.task == TASK
    assert loaded.card.network == {"kind": "vit-unet", "in_channels": 2, "strides": [[2, 2, 2]]}
    assert loaded.card.provenance == PROVENANCE
    assert loaded.card.parameters == 7
    assert loaded.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(loaded.tensors[name], TENSORS[name]) for name in TENSORS)


def test_any_safetensors_reader_can_open_it(model: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(model)["b.weight"], TENSORS["b.weight"])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(-6e4, 6e4, width=32)),
        max_size=4,
    ),
    st.sampled_from(["float32", "float16"]),
)
def test_every_float_tensor_survives(tmp_path: Path, content: dict[str, np.ndarray], dtype) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {name: torch.from_numpy(array) for name, array in content.items()}

    save_model(path, tensors, task=TASK, network=NETWORK, provenance={}, dtype=dtype)

    loaded = load_model(path)
    assert loaded.card.dtype == (dtype if tensors else "float32")
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == torch.float32
        assert torch.equal(loaded.tensors[name], tensor.to(getattr(torch, dtype)).float())


def test_hash_depends_on_content_alone(tmp_path: Path) -> None:
    def save(name: str, tensors, task=TASK, provenance=PROVENANCE, network=NETWORK, dtype="float32") -> str:
        return save_model(tmp_path / name, tensors, task=task, network=network, provenance=provenance, dtype=dtype)

    first = save("1", TENSORS)

    reordered = dict(reversed(TENSORS.items()))
    strided = {**TENSORS, "b.weight": TENSORS["b.weight"].t().contiguous().t()}
    assert save("2", reordered, provenance=dict(reversed(PROVENANCE.items()))) == first
    assert save("3", strided) == first
    others = [
        save("4", {**TENSORS, "b.weight": TENSORS["b.weight"].reshape(3, 2)}),
        save("5", {**TENSORS, "a.bias": torch.tensor(0.25)}),
        save("6", TENSORS, provenance={**PROVENANCE, "seed": 8}),
        save("7", TENSORS, task=replace(TASK, title="Another title")),
        save("8", TENSORS, network={**NETWORK, "in_channels": 3}),
        save("9", TENSORS, dtype="float16"),
    ]
    assert len({first, *others}) == 7


def test_card_is_read_in_milliseconds_and_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = NetworkConfig(in_channels=4, out_channels=4, channels=(8, 16), strides=((2, 2, 2),) * 2, embedding=96)
    save_model(path, build_network(config).state_dict(), task=TASK, network=config.to_dict(), provenance={})
    code = (
        "import sys; from twinseg.model_file import read_card; from time import process_time as now; start = now();"
        "card = read_card(sys.argv[1]); print(now() - start, 'torch' in sys.modules, card.parameters)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(sys.modules["twinseg"].__file__).parents[1])},
    )

    seconds, torch_imported, parameters = answer.stdout.split()
    assert float(seconds) < 0.05
    assert torch_imported == "False"
    assert int(parameters) == sum(tensor.numel() for tensor in build_network(config).state_dict().values())


def test_network_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = NetworkConfig(in_channels=2, out_channels=2, channels=(8, 16), strides=((2, 2, 2),) * 2, embedding=48)
    network = build_network(config).eval()
    save_model(path, network.state_dict(), task=TASK, network=config.to_dict(), provenance={})

    loaded = load_model(path)
    rebuilt = build_network(NetworkConfig.from_dict(loaded.card.network)).eval()
    rebuilt.load_state_dict(loaded.tensors)

    image = torch.rand(1, 2, 12, 16, 20)
    assert torch.equal(rebuilt(image), network(image))


def test_batchnorm_counters_are_left_out_and_not_missed(tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm3d(3)
    norm(torch.rand(2, 3, 4, 4, 4))
    path = tmp_path / "model.safetensors"
    save_model(path, norm.state_dict(), task=TASK, network={"kind": "densenet121"}, provenance={})

    rebuilt = torch.nn.BatchNorm3d(3)
    rebuilt.load_state_dict(load_model(path).tensors)

    assert torch.equal(rebuilt.running_mean, norm.running_mean)


def test_provenance_takes_what_a_training_measures(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    measured = {"dice": np.float32(0.5), "hd95": float("nan"), "curve": np.array([1, 2]), "data": Path("a"), 3: True}

    save_model(path, TENSORS, task=TASK, network=NETWORK, provenance=measured)

    assert read_card(path).provenance == {"dice": 0.5, "hd95": None, "curve": [1, 2], "data": "a", "3": True}


# --- bad files -------------------------------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot be read" in fault(tmp_path / "no.safetensors", read_card)
    assert "cannot be read" in fault(tmp_path, read_card)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_flipped_bit_anywhere_is_noticed(model: Path, data: st.DataObject) -> None:
    content = bytearray(model.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = model.with_name("damaged.safetensors")
    damaged.write_bytes(content)

    fault(damaged)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_short_is_noticed_by_the_card_already(model: Path, data: st.DataObject) -> None:
    content = model.read_bytes()
    cut = model.with_name("cut.safetensors")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])

    assert "cut short" in fault(cut, read_card)


def test_wrong_hash(model: Path) -> None:
    altered = with_metadata(model, provenance=json.dumps({**PROVENANCE, "dice": 0.99}))

    assert "does not match its hash" in fault(altered)


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    touched, plain, zipped = tmp_path / "touched", tmp_path / "model.pkl", tmp_path / "model.pt"
    plain.write_bytes(pickle.dumps(Bomb(touched)))
    torch.save({"weights": Bomb(touched)}, zipped)

    for path in (plain, zipped):
        assert "pickle" in fault(path)
        assert "pickle" in fault(path, read_card)
    assert not touched.exists()


def test_text_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"", b"abc", b"this is a letter to the radiology department\n"):
        path.write_bytes(content)
        assert "not a .safetensors file" in fault(path, read_card)


def test_header_bombs_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:  # sparse: 90 MB of header that take no room
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(90_000_008)
    start = time.process_time()

    fault(path, read_card)

    assert time.process_time() - start < 0.2
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    fault(path, read_card)


def test_deeply_nested_card(model: Path) -> None:
    assert "card is damaged" in fault(with_metadata(model, network="[" * 100_000), read_card)


def test_a_card_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    huge = {"log": "x" * LARGEST_HEADER}

    fault(path, save_model, tensors=TENSORS, task=TASK, network=NETWORK, provenance=huge)

    assert not path.exists()


def test_tensors_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(TENSORS, path)

    assert "no model card" in fault(path, read_card)


def test_unknown_format_version(model: Path) -> None:
    assert "Update TwinSegSlicer" in fault(with_metadata(model, twinseg_format="2"), read_card)


@pytest.mark.parametrize("key", ["task", "network", "provenance"])
@pytest.mark.parametrize("text", ["", "not a [table", "[]"])
def test_damaged_card(model: Path, key: str, text: str) -> None:
    assert "card is damaged" in fault(with_metadata(model, **{key: text}), read_card)


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)])
def test_anything_but_floats_is_refused(model: Path, value: torch.Tensor) -> None:
    with safetensors.safe_open(model, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file({**TENSORS, "odd": value}, model, metadata)

    assert "tensor odd is" in fault(model)
    assert "tensor odd is" in fault(
        model, save_model, tensors={"odd": value}, task=TASK, network=NETWORK, provenance={}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_neither_written_nor_read(model: Path, value: float) -> None:
    tensors = {**TENSORS, "sick": torch.tensor([1.0, value])}
    with safetensors.safe_open(model, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, model, metadata)

    assert "tensor sick holds NaN or infinity" in fault(model)
    assert "tensor sick" in fault(model, save_model, tensors=tensors, task=TASK, network=NETWORK, provenance={})


def test_float16_that_would_overflow_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    large = {"variance": torch.tensor([1e6])}

    message = fault(path, save_model, tensors=large, task=TASK, network=NETWORK, provenance={}, dtype="float16")

    assert "float16's range" in message
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "other"}, "toy"),
        ({"sequences": (Sequence("flair", "FLAIR"), Sequence("t1", "T1"))}, "sequences"),
        ({"labels": (Label(1, "WT", "", (0, 0, 0)), Label(2, "ET", "", (0, 0, 0)))}, "labels"),
    ],
)
def test_model_for_another_task(model: Path, change: dict, word: str) -> None:
    message = fault(model, expected_task=replace(TASK, **change))

    assert "another task" in message
    assert word in message


def test_what_does_not_concern_the_network_may_differ(model: Path) -> None:
    edited = replace(TASK, title="Edited", sequences=(Sequence("t1", "T1", ("mprage",)), Sequence("flair", "FLAIR")))

    assert load_model(model, expected_task=edited).card.task == TASK


# --- writing ---------------------------------------------------------------------------------------------------------


def test_full_disk_leaves_the_old_file_and_no_part(model: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    before = model.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutOfSpaceError, match="no space left"):
            save_model(model, {"w": torch.zeros(100_000)}, task=TASK, network=NETWORK, provenance={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


def test_store_puts_a_verified_copy_into_the_data_folder(model: Path, tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "données du programme"
    monkeypatch.setenv("TWINSEG_HOME", str(home))

    stored = store_model(model)

    assert stored == home / "models" / f"{read_card(model).hash}.safetensors"
    assert stored.read_bytes() == model.read_bytes()
    assert store_model(stored) == stored
    with_metadata(model, provenance="{}")
    fault(model, store_model)
    assert list(stored.parent.iterdir()) == [stored]


def test_data_folder_defaults_to_the_users_own(monkeypatch) -> None:
    monkeypatch.delenv("TWINSEG_HOME", raising=False)

    assert data_folder().is_absolute()
    assert data_folder().name.lower() == "twinseg"
