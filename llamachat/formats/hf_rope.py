"""How a config.json says that a model rotates: rope_theta and rope_scaling, or rope_parameters."""

from dataclasses import dataclass, replace
from typing import Any

from llamachat.checks import shown
from llamachat.core.spec import LAYER_TYPES, Rope, RopeScaling
from llamachat.errors import ConfigError
from llamachat.families.family import Family
from llamachat.system.metadata import Fields, naming

ROPES = ("rope_parameters", "rope_scaling")  # transformers 5's word, which holds theta too, and the older one
PART = "partial_rotary_factor"


@dataclass(frozen=True)
class Turning:
    """What some layers do: theta, scaling, and which part of each head rotates."""

    theta: float
    scaling: RopeScaling | None
    part: float

    def rope(self, head_dim: int) -> Rope:
        return Rope(self.theta, self.scaling, int(head_dim * self.part))


def rope_fields(fields: Fields, family: Family, context: int, head_dim: int) -> dict[str, Any]:
    """The spec's fields of how layers rotate; those with a window may do it in another way."""
    plain = Turning(fields.number("rope_theta", 10000.0), None, _part(fields, family, 1.0))
    main, windowed = _main_and_windowed(fields, family, plain, context)
    if family.window_theta:
        windowed = windowed or replace(main, theta=fields.number(family.window_theta, main.theta), scaling=None)
        fields.get(family.window_theta)
    return {
        "rope_theta": main.theta,
        "rope_scaling": main.scaling,
        "rotary_dim": None if main.part == 1 else main.rope(head_dim).dim,
        "sliding_rope": None if windowed in (None, main) else windowed.rope(head_dim),
    }


def _main_and_windowed(fields: Fields, family: Family, plain: Turning, context: int) -> tuple[Turning, Turning | None]:
    """The two, from what stands under either name; they may not contradict each other."""
    original = fields.whole("original_max_position_embeddings", 0, 1) or None
    found = list[tuple[Turning, Turning | None]]()
    for inner in filter(None, map(fields.inside, ROPES)):
        before = replace(found[0][0], scaling=None) if found else plain  # a theta that the second lacks is the first's
        found.append(_both(inner, family, before, context, original))
    if len(set(found)) > 1:
        new, old = (f"{key} is {shown(fields.raw[key])}" for key in ROPES)
        raise ConfigError(f"{fields.where}: {new}, but {old}", "they contradict each other", "remove the wrong one")
    return found[0] if found else (plain, None)


def _both(
    inner: Fields, family: Family, plain: Turning, context: int, original: int | None
) -> tuple[Turning, Turning | None]:
    """One mapping, or one for each kind of layer."""
    if not any(isinstance(inner.raw.get(kind), dict) for kind in LAYER_TYPES):
        return _turning(inner, family, plain, context, original), None
    each = [inner.inside(kind) for kind in LAYER_TYPES]
    inner.finish(())
    main, windowed = (_turning(kind, family, plain, context, original) if kind else None for kind in each)
    return main or plain, windowed


def _turning(fields: Fields, family: Family, plain: Turning, context: int, original: int | None) -> Turning:
    theta, part = fields.number("rope_theta", plain.theta), _part(fields, family, plain.part)
    scaling = _rope_scaling(fields, context, original)
    fields.finish({"finetuned"} | family.rope_no_effect)
    return Turning(theta, scaling, part)


def _part(fields: Fields, family: Family, default: float) -> float:
    """Only of some families' heads a part rotates."""
    if PART in family.defaults:
        part = fields.number(PART, default)
        return part if 0 < part <= 1 else fields.refuse(PART, "a number above 0, to 1")
    fields.neutral(PART, 1.0, 1)
    return 1.0


ROPE_KINDS = {kind: kind for kind in ("default", "linear", "dynamic", "yarn", "longrope", "llama3")} | {
    "su": "longrope"
}


def _rope_scaling(fields: Fields, context: int, original: int | None) -> RopeScaling | None:
    """The scaling of a mapping with rope_type (or type); `original` overrides its original_max_position_embeddings."""
    kind = fields.choice("rope_type" if fields.get("rope_type") is not None else "type", ROPE_KINDS, "default")
    if fields.get("type") is not None and fields.choice("type", ROPE_KINDS) != kind:
        fields.refuse("type", "the same as rope_type")
    if kind == "default":
        return None
    given = original or fields.get("original_max_position_embeddings") is not None
    inner = fields.whole("original_max_position_embeddings", context, 1)
    original = original or inner
    factor = fields.number("factor", max(context / original, 1e-6) if kind in ("yarn", "longrope") else None)
    with naming(fields.where):
        match kind:
            case "linear":
                return RopeScaling("linear", factor)
            case "dynamic":
                return RopeScaling("dynamic", factor, original if given else 0)
            case "llama3":
                low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
                return RopeScaling("llama3", factor, original, low, high)
        attention = fields.number("attention_factor") if fields.get("attention_factor") is not None else None
        if kind == "longrope":
            short, long = fields.numbers("short_factor"), fields.numbers("long_factor")
            return RopeScaling.longrope(factor, original, attention, short, long)
        return RopeScaling(
            "yarn",
            factor,
            original,
            beta_fast=fields.number("beta_fast", 0) or 32.0,
            beta_slow=fields.number("beta_slow", 0) or 1.0,
            truncate=fields.flag("truncate", True),
            mscale=fields.number("mscale", 0),
            mscale_all_dim=fields.number("mscale_all_dim", 0),
            attention_factor=attention,
        )
