"""Specifications of music as JSON of any shape, or as what is no JSON."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from attune_client.protocol.tensors import ModelSpec, bytes_tensor
from attune_ensemble.chaos.requests.building import MUSIC_SPEC, Draw, Fault, Message, has, set_input

__all__ = ["FAULTS"]


def _odd_json(draw: Draw, model: ModelSpec, message: Message) -> str:
    spec = model.input("music_spec")
    text = draw(_json_text())
    set_input(message, model, spec, bytes_tensor(text))
    return f"music_spec of {text[:40]!r}, {len(text)} long"


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def _json_text(draw: Draw) -> str | bytes:
    """JSON of any shape: not an object, with fields of other types, nested, huge, doubled, or not JSON at all."""
    kind = draw(st.sampled_from(["any", "one field", "fixed", "fixed", "deep"]))
    if kind == "any":
        return json.dumps(draw(_ANY_JSON))
    if kind == "one field":
        return json.dumps(MUSIC_SPEC | {draw(st.sampled_from(list(MUSIC_SPEC))): draw(_ANY_JSON)})
    if kind == "deep":
        bracket = draw(st.sampled_from(["[", '{"a":', '{"tempo_bpm":', '[{"mode":']))
        return bracket * draw(st.sampled_from([1, 500, 5_000, 50_000]))
    whole = json.dumps(MUSIC_SPEC)
    made: str | bytes = draw(
        st.sampled_from(
            [
                *(
                    "",
                    "null",
                    "{",
                    "}",
                    "[]",
                    "NaN",
                    "{}",
                    '"' * 99,
                    whole[:-1],
                    whole * 2,
                    whole + "\0",
                    "\ufeff" + whole,
                ),
                *(whole.replace("72", number) for number in ("NaN", "-Infinity", "1e999", "9" * 5_000, "-0", "0x48")),
                *(whole.replace("72", number) for number in ("40", "39.999", "180", "180.001", '"72"', "true", "[72]")),
                whole.replace('"mode"', '"tempo_bpm": 60, "tempo_bpm": 6000, "mode"'),
                whole.replace('["piano"]', json.dumps(["piano"] * 10_000)),
                whole.replace('["piano"]', "[]"),
                whole.replace('"piano"', "[[[[]]]]"),
                whole.replace("piano", "\\ud800"),
                whole.replace("dorian", "d" * 2**17),
                whole.encode("utf-16"),
                whole.replace("piano", "pian\xf6").encode("latin-1"),
            ]
        )
    )
    return made


FAULTS: dict[str, Fault] = {
    "JSON": (has("music_spec"), _odd_json),
}
