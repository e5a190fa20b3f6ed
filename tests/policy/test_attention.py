import pytest
import torch

from labkit.policy import attention
from labkit.policy.attention import Layout, PackedRow
from labkit.policy.inputs import encode_clip, patchify
from labkit.policy.model import Policy
from tests import tiny

LAYOUTS = [
    (
        [PackedRow(7, (3, 1, 4)), PackedRow(5), PackedRow(6, (2, 2))],
        "several rows, uneven suffixes, none, and suffixes of one length",
    ),
    ([PackedRow(0, (2, 3))], "nothing shared"),
    ([PackedRow(1, (1, 1, 1))], "single tokens"),
]


def visible(rows):
    """(L, L) bool from the definition: which token of the packed sequence may attend to which."""
    total = sum(row.length for row in rows)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    begin = 0
    for row in rows:
        at = begin
        for length in (row.prefix, *row.suffixes):
            allowed[at : at + length, begin : begin + row.prefix] = True
            allowed[at : at + length, at : at + length] = torch.ones(length, length).tril().bool()
            at += length
        allowed[begin : begin + row.prefix, begin : begin + row.prefix].tril_()
        begin = at
    return allowed


@pytest.mark.parametrize("kernel", [attention._FlashCpu, attention._Eager])
@pytest.mark.parametrize(("rows", "reason"), LAYOUTS)
def test_outputs_and_gradients_are_those_of_one_masked_softmax(rows, reason, kernel, monkeypatch):
    monkeypatch.setattr(attention, "_kernel_for", lambda query: kernel)
    layout, seen = Layout(rows), visible(rows)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(seen), 8, requires_grad=True) for heads in (4, 2, 2))
    weights = torch.randn(1, 4, len(seen), 8)
    found = attention._autograd_function().apply(query, key, value, layout, 0.3)
    wide = [x.repeat_interleave(2, 1) for x in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *wide, seen, scale=0.3)
    assert (found - expected).abs().max() < 1e-5, reason
    gradients = [torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (found, expected)]
    assert max((ours - theirs).abs().max() for ours, theirs in zip(*gradients, strict=True)) < 1e-5, reason


@pytest.mark.parametrize(("side", "reason"), [(140, "windows of four sizes"), (112, "windows as large as the frame")])
def test_windows_of_the_vision_tower_together_are_those_one_by_one(side, reason):
    plain = tiny.policy()
    rgb = torch.randint(0, 256, (4, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    patches, grid = patchify(rgb.numpy(), plain.family, 14, 2, 2)
    with torch.no_grad():
        expected = plain.base.model.get_video_features(patches, torch.tensor([grid]), return_dict=True)
    clip = type("Clip", (), {"patches": patches, "grid": grid})
    found = encode_clip(Policy(plain.model, plain.tokenizer, "tiny"), clip)
    assert plain.base.config.vision_config._attn_implementation == attention.VISION_ATTENTION
    assert torch.allclose(found, expected.pooler_output[0], atol=1e-5), reason
