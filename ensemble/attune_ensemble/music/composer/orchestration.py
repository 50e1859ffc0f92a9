"""Orchestration: assignment of instruments to roles.

Every instrument of the specification gets at least one role; a single instrument gets all roles that it can play.
"""

from __future__ import annotations

from dataclasses import dataclass

from attune_ensemble.music.composer.instruments import TABLE

_MELODY = ("violin", "flute", "oboe", "clarinet")
_COUNTER = ("cello", "french_horn")
_PADS = ("strings", "warm_pad", "choir")
_ARPEGGIO = ("piano", "harp", "nylon_guitar", "electric_piano", "steel_guitar", "vibraphone", "marimba")
_BELLS = ("celesta", "glockenspiel")
_BASS = ("contrabass",)
_DRUM = ("frame_drum",)

_LEAD_PROMOTION = (
    "cello",
    "piano",
    "vibraphone",
    "celesta",
    "nylon_guitar",
    "electric_piano",
    "french_horn",
    "harp",
    "steel_guitar",
    "glockenspiel",
    "marimba",
    "strings",
    "choir",
    "warm_pad",
    "contrabass",
)
_BASS_PROMOTION = (
    "cello",
    "piano",
    "electric_piano",
    "harp",
    "nylon_guitar",
    "steel_guitar",
    "strings",
    "warm_pad",
    "marimba",
    "french_horn",
    "choir",
)
_TWO_HANDED = frozenset({*_ARPEGGIO, "strings", "choir", "warm_pad"})


@dataclass(frozen=True, slots=True)
class Cast:
    """The instruments of each role, in order of precedence."""

    leads: tuple[str, ...]
    counters: tuple[str, ...]
    arpeggios: tuple[str, ...]
    pads: tuple[str, ...]
    basses: tuple[str, ...]
    bells: tuple[str, ...]
    drums: tuple[str, ...]

    @property
    def accompanies(self) -> bool:
        """Whether there are arpeggios or pads."""
        return bool(self.arpeggios or self.pads)


def cast(instruments: tuple[str, ...]) -> Cast:
    """Assign each instrument its default role, then fill a missing melody and a missing bass."""
    asked = tuple(dict.fromkeys(instruments))

    def natural(role: tuple[str, ...]) -> list[str]:
        return [name for name in asked if name in role]

    leads, counters, arpeggios, pads = natural(_MELODY), natural(_COUNTER), natural(_ARPEGGIO), natural(_PADS)
    basses, bells = natural(_BASS), natural(_BELLS)
    if not leads:
        leads = [name for name in _LEAD_PROMOTION if name in asked][:1]
        for group in (counters, arpeggios, pads, basses, bells):
            _leave(group, leads, keep_if_alone=group is not counters and group is not bells)
    if not basses:
        basses = [name for name in _BASS_PROMOTION if name in asked and (name not in leads or name in _TWO_HANDED)][:1]
        if len(leads) + len(counters) > 1 and basses and basses[0] in counters:
            counters.remove(basses[0])
    return Cast(*(tuple(group) for group in (leads, counters, arpeggios, pads, basses, bells, natural(_DRUM))))


def _leave(group: list[str], leads: list[str], keep_if_alone: bool) -> None:
    """Remove new leads from a role that others fill; a two-handed instrument alone in it keeps both."""
    for name in leads:
        others = [other for other in group if other != name]
        if name in group and (others or not keep_if_alone or name not in _TWO_HANDED):
            group.remove(name)


def on_duty(group: tuple[str, ...], turn: int, count: int) -> tuple[str, ...]:
    """Return `count` instruments of the group, in rotation."""
    if len(group) <= count:
        return group
    return tuple(group[(turn * count + i) % len(group)] for i in range(count))


def melody_range(instrument: str) -> tuple[int, int]:
    """Return the lowest and highest pitch of a melody: about an octave and a half around the melodic register."""
    facts = TABLE[instrument]
    return max(facts.low, facts.melody_centre - 9), min(facts.high, facts.melody_centre + 10)
