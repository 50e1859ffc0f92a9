"""Scores of stories and of negations as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attune_training.evaluation.stories.measures import NegationScores, Share, StoryScores, differences, main_measures
from attune_training.evaluation.words import WordErrors

__all__ = ["negations_markdown", "rules_markdown", "speech_markdown", "stories_markdown"]

_IN_POINTS = {
    "valence_side": "right valence side (VAD)",
    "octant": "right octant (emotion)",
    "vad_octant": "right octant (VAD)",
    "family": "right family",
    "emotion": "right emotion",
    "most_frequent_share": "most frequent emotion",
}
_AS_NUMBERS = {
    "used": "emotions used",
    "entropy": "their entropy, bits",
    "told_apart": "fear, sadness, anger by nearest anchor",
    "valence_pcc": "valence, PCC",
    "arousal_pcc": "arousal, PCC",
    "dominance_pcc": "dominance, PCC",
}


def stories_markdown(scores: StoryScores, num_emotions: int) -> str:
    """Return the table of measures, and that of the dimensions."""
    shares = {
        "right valence side (VAD)": scores.valence_side,
        "right octant (emotion)": scores.octant,
        "right octant (VAD)": scores.vad_octant,
        "right family": scores.family,
        "right emotion": scores.emotion,
    }
    rows = [_share_row(name, share) for name, share in shares.items()]
    rows += [
        f"| emotions used | {scores.used} of {num_emotions} |",
        f"| their entropy | {scores.entropy:.2f} of {math.log2(num_emotions):.2f} bits |",
        f"| most frequent emotion | {scores.most_frequent}, {scores.most_frequent_share:.1%} |",
        f"| fear, sadness, anger by nearest anchor, balanced accuracy | {_told_apart(scores)} |",
        f"| calibration error, emotion | {scores.emotion_calibration:.3f} |",
        f"| calibration error, octant | {scores.octant_calibration:.3f} |",
    ]
    head = [f"| {scores.count} stories | measured [95 %] |", "|---|---|"]
    return "\n".join([*head, *rows, "", *_dimension_rows(scores)])


def speech_markdown(text: StoryScores, speech: Mapping[str, StoryScores], errors: Mapping[str, WordErrors]) -> str:
    """Return the table of measures on the text alone and on each voice, with the differences to the text."""
    names = list(speech)
    lines = [f"| as text, and as heard | text | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    lines.append(f"| words wrong | | {' | '.join(f'{errors[name].rate:.1%}' for name in names)} |")
    for key, value in main_measures(text).items():
        gaps = [differences(text, speech[name])[key] for name in names]
        if key in _IN_POINTS:
            cells = [f"{value:.1%}", *(f"{value + gap:.1%} ({100 * gap:+.1f})" for gap in gaps)]
        else:
            cells = [f"{value:.3g}", *(f"{value + gap:.3g} ({gap:+.2f})" for gap in gaps)]
        lines.append(f"| {(_IN_POINTS | _AS_NUMBERS)[key]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rules_markdown(voices: Mapping[str, Mapping[str, StoryScores]], served: str) -> str:
    """Return the main measures of each voice by each rule for the whole."""
    lines = ["| the whole by | valence side | octant | family | valence, PCC | arousal, PCC |", f"|---|{'---:|' * 5}"]
    for voice, by_rule in voices.items():
        for rule, scores in by_rule.items():
            shares = [f"{share.share:.1%}" for share in (scores.valence_side, scores.octant, scores.family)]
            numbers = [f"{scores.dimensions[name].pcc:.3f}" for name in ("valence", "arousal")]
            name = f"{voice}, {rule}{' (served)' if rule == served else ''}"
            lines.append(f"| {name} | {' | '.join([*shares, *numbers])} |")
    return "\n".join(lines)


def negations_markdown(scores: NegationScores) -> str:
    """Return the table of the right sides."""
    shares = {
        "right valence side": scores.valence,
        "where the word by itself lies on the other side": scores.turned,
        "where it lies on the same": scores.kept,
        "right arousal side, where one is clear": scores.arousal,
    }
    rows = [_share_row(name, share) for name, share in shares.items() if share is not None]
    return "\n".join([f"| {scores.valence.count} negations | measured [95 %] |", "|---|---|", *rows])


def _share_row(name: str, share: Share) -> str:
    interval = f"[{share.interval.low:.1%}, {share.interval.high:.1%}]"
    return f"| {name} | {share.share:.1%} {interval}, {share.right} of {share.count} |"


def _told_apart(scores: StoryScores) -> str:
    found = scores.told_apart
    if found is None:
        return "not all three among the stories"
    recall = ", ".join(f"{name} {value:.2f}" for name, value in found.recall.items())
    return f"{found.balanced_accuracy:.3f} ({recall}; {found.count} stories)"


def _dimension_rows(scores: StoryScores) -> list[str]:
    lines = ["| dimension, against the anchors | PCC | CCC | RMSE | spread |", "|---|---|---|---|---|"]
    for name, item in scores.dimensions.items():
        lines.append(f"| {name} | {item.pcc:.3f} | {item.ccc:.3f} | {item.rmse:.3f} | {scores.spread[name]:.2f} |")
    return lines
