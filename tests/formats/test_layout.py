"""formats/layout.py: where joined and stacked tensors go, and that what is cut stays in the map."""

from dataclasses import replace

import numpy as np

from llamachat.core.spec import Experts, ModelSpec
from llamachat.core.tensors import FloatTensor
from llamachat.families.family import FUSED_QKV, STACKED, Layout
from llamachat.formats.layout import Cut, Places, cut, half_split
from llamachat.formats.lazy import float_entry

SPEC = ModelSpec(
    vocab_size=97, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=4, max_position_embeddings=16, experts=Experts(2, 1, 3),
)  # fmt: skip
STACK = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)


def placed(layout: Layout, part: str, kind: str = "weight", stack: int = 0) -> dict[str, Cut]:
    return dict(Places(layout, SPEC).of("x.", part, kind, stack))


def test_joined_rows_go_to_their_modules_in_order() -> None:
    rows = {name: what.rows for name, what in placed(Layout(FUSED_QKV), "self_attn.qkv_proj").items()}
    assert rows == {
        "x.self_attn.q_proj.weight": slice(0, 8),
        "x.self_attn.k_proj.weight": slice(8, 12),
        "x.self_attn.v_proj.weight": slice(12, 16),
    }


def test_a_stack_is_taken_apart_by_expert_and_by_module() -> None:
    for layout, gate in ((Layout(STACKED), slice(0, 3)), (Layout(STACKED, alternating=True), slice(0, None, 2))):
        found = placed(layout, "mlp.experts.gate_up_proj", stack=2)
        assert list(found) == [f"x.mlp.experts.{n}.{name}_proj.weight" for n in range(2) for name in ("gate", "up")]
        assert found["x.mlp.experts.1.gate_proj.weight"] == Cut(gate, 1)
    alone = placed(Layout(STACKED), "mlp.experts.1.gate_up_proj")
    assert alone["x.mlp.experts.1.up_proj.weight"] == Cut(slice(3, 6))


def test_what_is_not_known_or_not_a_stack_of_all_experts_keeps_its_name() -> None:
    assert placed(Layout(STACKED), "mlp.other") == {"x.mlp.other.weight": Cut(slice(None))}
    assert list(placed(Layout(STACKED), "mlp.experts.gate_up_proj", stack=10**12)) == [
        "x.mlp.experts.gate_up_proj.weight"
    ]


def test_a_cut_is_a_view_of_the_file_with_its_share_of_the_bytes() -> None:
    part = cut(float_entry("x", STACK), Cut(slice(1, None, 2), 1))
    tensor = part.read()
    assert isinstance(tensor, FloatTensor)
    assert np.shares_memory(tensor.data, STACK)
    assert (part.info.shape, part.info.nbytes) == ((3, 8), 3 * 8 * 4)
    np.testing.assert_array_equal(tensor.data, STACK[1, 1::2])
    turned = cut(float_entry("x", STACK), Cut(slice(0, 4), 0, turned=True))
    assert turned.info.shape == (4, 6)
    np.testing.assert_array_equal(turned.read().data, STACK[0].T[:4])  # type: ignore[union-attr]


def test_only_what_rotates_of_each_head_is_reordered() -> None:
    rows, half = np.arange(8, dtype=np.float32)[:, None], replace(SPEC, rotary_dim=2, head_dim=4)
    orders = {}
    for name, spec in (
        ("self_attn.q_proj.weight", SPEC),
        ("self_attn.q_proj.weight ", half),
        ("mlp.up_proj.weight", SPEC),
    ):
        read = half_split(name.strip(), float_entry(name, rows), spec).read()
        assert isinstance(read, FloatTensor)
        orders[name] = read.data[:, 0].tolist()
    assert list(orders.values()) == [[0, 2, 1, 3, 4, 6, 5, 7], list(range(8)), list(range(8))]
