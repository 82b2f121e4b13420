"""The ViT-UNet: any size in, the same size out; its variants, its norm, its positions, its gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twinseg.errors import InputError
from twinseg.model_file import load_model, save_model
from twinseg.network import (
    PRESETS,
    InstanceNorm,
    NetworkConfig,
    ResidualBlock,
    SoundConv3d,
    ViTUNet,
    build_network,
    count_parameters,
    equal_parameters,
    preset,
    rotary_angles,
    rotate,
)
from twinseg.tasks import Task

VARIANTS = ("hybrid", "cnn", "vit")
STRIDES = ((2, 2, 1), (2, 2, 2), (2, 2, 2))
TINY = NetworkConfig(2, 3, channels=(4, 6, 8), strides=STRIDES, embedding=24, depth=2, heads=2)


def same_output(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# --- sizes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(VARIANTS), st.tuples(*[st.integers(1, 21)] * 3), st.integers(1, 2), st.booleans())
def test_the_output_has_the_input_s_size(variant: str, size: tuple[int, int, int], count: int, training: bool) -> None:
    network = build_network(replace(TINY, variant=variant)).train(training)

    with torch.no_grad():
        logits = network(torch.randn(count, 2, *size))

    assert logits.shape == (count, 3, *size)
    assert logits.isfinite().all()


def test_deep_supervision_gives_coarser_predictions_in_training_alone() -> None:
    network = build_network(replace(TINY, deep_supervision=True))
    image = torch.randn(1, 2, 16, 8, 8)

    coarse_too, final = network.train()(image), network.eval()(image)

    assert [tuple(logits.shape[2:]) for logits in coarse_too] == [(16, 8, 8), (8, 4, 8), (4, 2, 4)]
    assert same_output(final, coarse_too[0])


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network = build_network(TINY).eval()
    batch = torch.randn(3, 2, 8, 8, 8)

    together = network(batch)

    for index in range(3):
        assert same_output(together[index], network(batch[index : index + 1])[0])


def test_every_convolution_is_given_channels_last_memory_in_bfloat16() -> None:
    """The layout in which CPUs and GPUs are fast; one lost permutation would halve the speed unseen. Where a CPU has no
    units for bfloat16, torch's own convolution loses it: what it gives is put in order here, to see the network's part.
    """
    network = build_network(TINY)
    seen: list[bool] = []

    def look(_: nn.Module, given: tuple[Tensor], made: Tensor) -> Tensor:
        seen.append(given[0].is_contiguous(memory_format=torch.channels_last_3d))
        return made.contiguous(memory_format=torch.channels_last_3d)

    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(look)

    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 2, 16, 16, 16))

    assert len(seen) > 10
    assert all(seen)


def test_bfloat16_gives_nearly_the_same() -> None:
    torch.manual_seed(0)
    network, image = build_network(TINY).eval(), torch.randn(1, 2, 16, 16, 8)

    with torch.no_grad():
        exact = network(image).softmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(image).float().softmax(1)

    assert (exact - rounded).abs().max() < 0.05


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_every_parameter(variant: str, deep_supervision: bool) -> None:
    torch.manual_seed(0)
    network = build_network(replace(TINY, variant=variant, deep_supervision=deep_supervision)).train()

    outputs = network(torch.randn(1, 2, 16, 16, 16))
    sum(logits.square().mean() for logits in (outputs if deep_supervision else [outputs])).backward()

    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


# --- presets and variants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [((2, 2, 2),) * 4, ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))])
@pytest.mark.parametrize("variant", ["cnn", "vit"])
def test_variants_have_equal_parameter_counts(strides: tuple, variant: str) -> None:
    hybrid = preset("small", 4, 4, strides)

    other = equal_parameters(hybrid, variant)

    assert other.variant == variant
    with torch.device("meta"):
        assert count_parameters(ViTUNet(other)) == pytest.approx(count_parameters(ViTUNet(hybrid)), rel=0.05)


def test_the_small_preset_fits_in_8_mb(tmp_path: Path, glioma: Task) -> None:
    network = build_network(preset("small", 4, 4, glioma.strides))
    path = tmp_path / "small.safetensors"

    save_model(
        path, network.state_dict(), task=glioma, network=network.config.to_dict(), provenance={}, dtype="float16"
    )

    assert path.stat().st_size < 8e6


def test_a_model_file_gives_the_same_network_back(tmp_path: Path, glioma: Task) -> None:
    network = build_network(TINY).eval()
    save_model(tmp_path / "m.safetensors", network.state_dict(), task=glioma, network=TINY.to_dict(), provenance={})

    model = load_model(tmp_path / "m.safetensors")
    again = build_network(NetworkConfig.from_dict(model.card.network)).eval()
    again.load_state_dict(model.tensors)

    image = torch.randn(1, 2, 9, 9, 9)
    assert torch.equal(again(image), network(image))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_survives_json(name: str, variant: str) -> None:
    config = replace(preset(name, 4, 3, ((2, 2, 1),) * 4), variant=variant)

    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"variant": "mlp"}, "use hybrid, cnn or vit"),
        ({"strides": ((2, 2, 2),)}, "3 channel counts need as many strides"),
        ({"embedding": 25}, "25 does not divide"),
        ({"embedding": 18, "heads": 6}, "18 does not divide"),  # 3 features a head: no pairs to turn
    ],
)
def test_a_contradictory_configuration_is_refused(change: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(TINY, **change)


def test_an_unknown_preset_is_bad_input() -> None:
    with pytest.raises(InputError, match="'huge' is unknown; use one of tiny, small, base"):
        preset("huge", 1, 2, ((2, 2, 2),) * 4)


def test_a_preset_for_another_number_of_strides_is_bad_input() -> None:
    with pytest.raises(InputError, match="small has 4 levels, but the task names 2 strides"):
        preset("small", 1, 2, ((2, 2, 2),) * 2)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_instance_norm_equals_torchs_forward_and_backward(count: int) -> None:
    torch.manual_seed(count)
    ours, theirs = InstanceNorm(5), nn.InstanceNorm3d(5, affine=True)
    for norm in (ours, theirs):
        norm.weight.data, norm.bias.data = torch.linspace(0.5, 2, 5), torch.linspace(-1, 1, 5)
    image = torch.randn(count, 5, 4, 6, 3).mul(3).add(7)
    one, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    towards = torch.randn_like(image)

    our_output, their_output = ours(one), theirs(other)
    our_output.backward(towards)
    their_output.backward(towards)

    assert torch.allclose(our_output, their_output, atol=1e-5)
    assert one.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-5)
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-4)
    assert torch.allclose(ours.bias.grad, theirs.bias.grad, atol=1e-4)


def test_instance_norm_of_one_voxel_is_its_shift() -> None:
    norm = InstanceNorm(2)
    norm.bias.data = torch.tensor([3.0, -1.0])

    assert torch.equal(norm(torch.tensor([5.0, 9.0]).reshape(1, 2, 1, 1, 1)).flatten(), torch.tensor([3.0, -1.0]))


@pytest.mark.parametrize("head_width", [12, 14, 32])
def test_rotary_attention_depends_on_the_offset_alone(head_width: int) -> None:
    torch.manual_seed(0)
    grid = (4, 3, 5)
    angles = rotary_angles(grid, head_width, torch.device("cpu"))
    query, key = (torch.randn(head_width).expand(1, 1, 60, head_width) for _ in range(2))

    scores = (rotate(query, angles) @ rotate(key, angles).transpose(-1, -2))[0, 0].reshape(*grid, *grid)

    # Whatever the place that asks, the place one step on along an axis is answered alike.
    assert torch.allclose(scores[0, 0, 0, 1, 0, 0], scores[2, 1, 3, 3, 1, 3], atol=1e-4)
    assert torch.allclose(scores[0, 0, 0, 0, 2, 0], scores[3, 0, 2, 3, 2, 2], atol=1e-4)
    assert torch.allclose(scores[1, 1, 3, 0, 2, 1], scores[3, 0, 4, 2, 1, 2], atol=1e-4)
    # ... and the axes and directions differ.
    assert not torch.allclose(scores[1, 1, 1, 2, 1, 1], scores[1, 1, 1, 1, 2, 1], atol=1e-3)
    assert not torch.allclose(scores[1, 1, 1, 2, 1, 1], scores[1, 1, 1, 0, 1, 1], atol=1e-3)


def test_rotation_keeps_lengths() -> None:
    features = torch.randn(2, 3, 60, 24)

    turned = rotate(features, rotary_angles((4, 3, 5), 24, torch.device("cpu")))

    assert torch.allclose(turned.norm(dim=-1), features.norm(dim=-1), atol=1e-4)


def test_positions_do_not_depend_on_the_grid_s_size() -> None:
    small, large = (rotary_angles(grid, 12, torch.device("cpu")).reshape(*grid, -1) for grid in ((2, 3, 4), (5, 6, 7)))

    assert torch.equal(small, large[:2, :3, :4])


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 4, 4), (4, 2, 2), (3, 2, 2)], ids=str)
def test_gradients_in_bfloat16_are_those_in_float32_on_the_smallest_images(size: tuple[int, int, int]) -> None:
    """Memory that was used before and is given back holds NaN here: no gradient may be made of it."""
    torch.manual_seed(0)
    block = ResidualBlock(16, (3, 3, 3)).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 16, *size).to(memory_format=torch.channels_last_3d)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        block.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            answer = block(image)
        used = [torch.full((2**power,), float("nan")) for power in range(3, 19) for _ in range(4)]
        del used
        answer.float().pow(2).mean().backward()
        assert block.second.weight.grad is not None
        return block.second.weight.grad.clone()

    torch.testing.assert_close(gradient(torch.bfloat16), gradient(torch.float32), rtol=0.1, atol=0.02)


sizes = st.tuples(*[st.integers(2, 9)] * 3)
kernels = st.sampled_from([(3, 3, 3), (3, 3, 1), (1, 3, 3), (2, 2, 2), (5, 3, 3)])
strides = st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 1, 1)])


@settings(max_examples=40, deadline=None)
@given(size=sizes, kernel=kernels, stride=strides, bias=st.booleans())
def test_a_small_image_in_two_halves_gives_the_same_numbers_and_gradients(
    size: tuple[int, int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    x, y, z = (length // 2 for length in kernel)
    ours = SoundConv3d(3, 4, kernel, stride, (x, y, z), bias=bias)
    image = torch.randn(1, 3, *size, requires_grad=True)

    found, wanted = ours(image), nn.Conv3d.forward(ours, image)

    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(answer, [image, ours.weight], towards) for answer in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 4, 4), (12, 12, 12), (12, 20, 8)], ids=str)
def test_a_small_image_in_float32_does_not_go_to_torch_s_slow_convolution(size: tuple[int, int, int]) -> None:
    layer = SoundConv3d(32, 32, (3, 3, 3), padding=(1, 1, 1))
    image = torch.randn(1, 32, *size, requires_grad=True)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(image).sum().backward()

    operations = {event.key for event in seen.key_averages()}
    assert "aten::mkldnn_convolution" in operations
    assert not [name for name in operations if "slow_conv3d" in name]
