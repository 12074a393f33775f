"""Every backward pass by hand against numerical differences in float64, and its forward pass against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import scaled_dot_product_attention, silu

from trainers import attention as attention_module
from trainers import kernels
from trainers.attention import Attention
from trainers.blocks import AttentionBlock, AttentionParts, MlpBlock, MlpParts, Norm, RmsNorm, Step
from trainers.kernels import LoraProduct, Projection
from trainers.packing import Layout

HEADS, KV_HEADS, DIM, HIDDEN, RANK = 4, 2, 4, 6, 2
LAYOUTS = [Layout(0, 1, 5), Layout(0, 3, 2), Layout(3, 2, 2)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to multiply, whatever this processor prefers."""
    monkeypatch.setattr(kernels, "prefers_onednn", lambda: request.param)


@pytest.fixture(params=[10_000, 0], ids=["products", "flash"])
def attention_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "SMALL_ATTENTION", request.param)


def random(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def projection(inputs: int, outputs: int, *, adapted: bool = True, bias: bool = False, dropout: float = 0.0) -> Projection:
    a, b = (random(RANK, inputs, grad=True), random(outputs, RANK, grad=True)) if adapted else (None, None)
    return Projection(random(outputs, inputs), random(outputs) if bias else None, a, b, scale=1.5, dropout=dropout)


def norm(size: int) -> Norm:
    return Norm(random(size), 1e-5)


def attention_parts(*, head_norms: bool = False, dropout: float = 0.0) -> AttentionParts:
    q = projection(HIDDEN, HEADS * DIM, bias=True, dropout=dropout)
    k, v = projection(HIDDEN, KV_HEADS * DIM, dropout=dropout), projection(HIDDEN, KV_HEADS * DIM, adapted=False, bias=True)
    output = projection(HEADS * DIM, HIDDEN, dropout=dropout)
    return AttentionParts(norm(HIDDEN), (q, k, v), output, (norm(DIM), norm(DIM)) if head_norms else None, DIM)


def step(layout: Layout, *, training: bool = True) -> Step:
    angles = random(layout.tokens, 1, DIM // 2)
    return Step(Attention(layout, HEADS, KV_HEADS, DIM**-0.5, torch.float64), angles.cos(), angles.sin(), training)


def right_by_differences(function: Callable[..., Tensor], x: Tensor, adapters: list[Tensor]) -> None:
    assert gradcheck(lambda *tensors: function(*tensors), (x, *adapters))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("head_norms", [False, True])
@pytest.mark.usefixtures("attention_form")
def test_attention_block(layout: Layout, head_norms: bool) -> None:
    parts, shared = attention_parts(head_norms=head_norms), step(layout)
    x = random(layout.tokens, HIDDEN, grad=True)
    right_by_differences(lambda x, *adapters: AttentionBlock.apply(x, parts, shared, None, *adapters), x, parts.adapters)


def test_attention_block_of_some_rows() -> None:
    parts, shared, kept = attention_parts(), step(LAYOUTS[2]), torch.tensor([2, 5])
    x = random(LAYOUTS[2].tokens, HIDDEN, grad=True)
    right_by_differences(lambda x, *adapters: AttentionBlock.apply(x, parts, shared, kept, *adapters), x, parts.adapters)
    whole = AttentionBlock.apply(x, parts, shared, None, *parts.adapters)
    torch.testing.assert_close(AttentionBlock.apply(x, parts, shared, kept, *parts.adapters), whole[kept])


@pytest.mark.usefixtures("product")
def test_mlp_block() -> None:
    parts = MlpParts(norm(HIDDEN), (projection(HIDDEN, 8, bias=True), projection(HIDDEN, 8, adapted=False)), projection(8, HIDDEN))
    shared, x = step(LAYOUTS[0]), random(5, HIDDEN, grad=True)
    right_by_differences(lambda x, *adapters: MlpBlock.apply(x, parts, shared, *adapters), x, parts.adapters)


def test_blocks_with_dropout_differentiate_what_they_drew() -> None:
    parts, shared = attention_parts(dropout=0.4), step(LAYOUTS[1])
    mlp = MlpParts(
        norm(HIDDEN), (projection(HIDDEN, 8, dropout=0.4), projection(HIDDEN, 8, dropout=0.4)), projection(8, HIDDEN, dropout=0.4)
    )

    def drawn_alike(x: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(3)
        return MlpBlock.apply(AttentionBlock.apply(x, parts, shared, None, *parts.adapters), mlp, shared, *mlp.adapters)

    right_by_differences(drawn_alike, random(6, HIDDEN, grad=True), [*parts.adapters, *mlp.adapters])


def test_dropout_keeps_the_mean_and_falls_silent_in_evaluation() -> None:
    p, x = projection(HIDDEN, 8, dropout=0.5), random(3, HIDDEN)
    [plain], _ = kernels.project(x, [p], training=False)
    [whole], _ = kernels.project(x, [Projection(p.weight, p.bias, p.a, p.b, p.scale)], training=True)
    assert torch.equal(plain, whole)
    drawn = torch.stack([kernels.project(x, [p], training=True)[0][0] for _ in range(4000)]).detach()
    assert (drawn.std(0) > 0.01).all()
    torch.testing.assert_close(drawn.mean(0), plain.detach(), atol=0.5, rtol=0.05)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.usefixtures("attention_form")
def test_attention_is_that_of_each_row_alone(layout: Layout) -> None:
    q, k, v = random(layout.tokens, HEADS, DIM), random(layout.tokens, KV_HEADS, DIM), random(layout.tokens, KV_HEADS, DIM)
    out, _ = Attention(layout, HEADS, KV_HEADS, 0.7, torch.float64).forward(q, k, v)
    for row in range(layout.rows):
        start = layout.prefix + row * layout.suffix
        mine = [*range(layout.prefix), *range(start, start + layout.suffix)]
        rows = (x[mine].transpose(0, 1) for x in (q, k, v))
        alone = scaled_dot_product_attention(*rows, is_causal=True, scale=0.7, enable_gqa=True).transpose(0, 1)
        torch.testing.assert_close(out[mine], alone)


def test_rms_norm() -> None:
    some, x = norm(HIDDEN), random(3, HIDDEN, grad=True)
    assert gradcheck(lambda x: RmsNorm.apply(x, some), (x,))
    torch.testing.assert_close(RmsNorm.apply(x, some), torch.nn.functional.rms_norm(x, (HIDDEN,), some.weight, some.eps))


def test_rotation_is_undone_by_the_opposite_angle() -> None:
    x, angles = random(5, HEADS, DIM), random(5, 1, DIM // 2)
    turned = kernels.rotate(x, angles.cos(), angles.sin())
    assert not torch.allclose(turned, x)
    torch.testing.assert_close(kernels.rotate(turned, angles.cos(), -angles.sin()), x)


def test_gated_silu_and_what_its_backward_pass_computes_again() -> None:
    gate, up = random(3, 5, grad=True), random(3, 5)
    product, activated, slope = kernels.gated_silu_again(gate.detach(), up)
    torch.testing.assert_close(product, kernels.gated_silu(gate.detach(), up))
    torch.testing.assert_close(activated, silu(gate.detach()))
    torch.testing.assert_close(slope, torch.autograd.grad(silu(gate).sum(), gate)[0])


@pytest.mark.usefixtures("product")
def test_lora_product() -> None:
    p = projection(HIDDEN, 5, bias=True)
    arguments = (random(4, HIDDEN, grad=True), p.weight, p.bias, p.a, p.b, p.scale)
    assert gradcheck(LoraProduct.apply, arguments)


@pytest.mark.usefixtures("product")
def test_projections_in_float32() -> None:
    p, x = projection(HIDDEN, 5, bias=True), random(4, HIDDEN)
    narrow = Projection(p.weight.float(), p.bias.float(), p.a.float().detach(), p.b.float().detach(), p.scale)
    [wide], kept = kernels.project(x, [p], training=True)
    [y], kept_narrow = kernels.project(x.float(), [narrow], training=True)
    torch.testing.assert_close(y.double(), wide.detach(), atol=1e-5, rtol=1e-5)
    grad = random(4, 5)
    expected, _ = kernels.project_backward([grad], x, [p], kept, needs_x=True)
    got, _ = kernels.project_backward([grad.float()], x.float(), [narrow], kept_narrow, needs_x=True)
    torch.testing.assert_close(got.double(), expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_low_precision_base_keeps_its_adapter_in_float32() -> None:
    x, weight = torch.randn(4, HIDDEN).bfloat16().requires_grad_(), torch.randn(5, HIDDEN).bfloat16()
    a, b = torch.randn(RANK, HIDDEN, requires_grad=True), torch.randn(5, RANK, requires_grad=True)
    y = LoraProduct.apply(x, weight, None, a, b, 2.0)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(y.float(), x.float() @ weight.float().t() + 2 * x.float() @ a.t() @ b.t(), atol=0.3, rtol=0.05)


def test_the_choice_of_product_is_a_fact_about_the_processor() -> None:
    kernels.prefers_onednn.cache_clear()
    first = kernels.prefers_onednn()
    kernels.prefers_onednn.cache_clear()
    assert kernels.prefers_onednn() == first
