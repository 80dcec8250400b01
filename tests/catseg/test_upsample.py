import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from catseg.upsample import upsample_beside


def make_parts(batch, channels, wide, height, width, dtype):
    torch.manual_seed(0)
    upsampler = nn.ConvTranspose2d(channels, wide, 2, stride=2, dtype=dtype)
    features = torch.randn(batch, channels, height, width, dtype=dtype, requires_grad=True)
    skip = torch.randn(batch, wide, 2 * height, 2 * width, dtype=dtype, requires_grad=True)
    return upsampler, features, skip


def concatenate(upsampler, features, skip):
    return torch.cat((upsampler(features), skip), dim=1)


size = st.integers(1, 5)


@settings(deadline=None, max_examples=30)
@given(size, size, size, size, size)
def test_equals_a_transposed_convolution_and_a_concatenation_in_value_and_gradients(
    batch, channels, wide, height, width
):
    upsampler, features, skip = make_parts(batch, channels, wide, height, width, torch.float64)
    leaves = (features, skip, *upsampler.parameters())
    ours, theirs = upsample_beside(upsampler, features, skip), concatenate(upsampler, features, skip)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(theirs)
    gradients = torch.autograd.grad((theirs * weight).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), leaves), gradients)


def test_gradients_equal_differences():
    upsampler, features, skip = make_parts(2, 3, 2, 2, 3, torch.float64)
    weights = tuple(upsampler.parameters())

    def compute(features, skip, *_):
        return upsample_beside(upsampler, features, skip)

    assert torch.autograd.gradcheck(compute, (features, skip, *weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_it_in_its_own_precision_and_gradients_come_in_that_of_the_weights(dtype):
    upsampler, features, skip = make_parts(1, 4, 2, 3, 3, torch.float32)
    with torch.autocast("cpu", dtype):
        both = upsample_beside(upsampler, features, skip)
    assert both.dtype is dtype
    both.float().sum().backward()
    assert {tensor.grad.dtype for tensor in (features, skip, *upsampler.parameters())} == {torch.float32}
    torch.testing.assert_close(both.float(), concatenate(upsampler, features, skip), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_layout_are_those_of_torchs_own_to_the_bit(layout):
    upsampler, features, skip = make_parts(2, 4, 3, 4, 4, torch.float32)
    parts = (upsampler, features.to(memory_format=layout), skip.to(memory_format=layout))
    both, expected = upsample_beside(*parts), concatenate(*parts)
    assert torch.equal(both, expected)
    assert both.stride() == expected.stride()
