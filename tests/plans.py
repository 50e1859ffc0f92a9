"""A plan that changes once, for the tests of what follows plans."""

from __future__ import annotations

from dataclasses import dataclass, field

from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.music.plan import ConstantPlan


@dataclass(frozen=True)
class Turn:
    """One plan before `at_s`, another from then on; `asked` collects the times that it was asked for."""

    first: ConstantPlan
    then: ConstantPlan
    at_s: float
    asked: list[float] = field(default_factory=list)

    def spec_at(self, time_s: float) -> MusicSpec:
        return self._at(time_s).spec

    def prompt_at(self, time_s: float) -> str:
        return self._at(time_s).prompt

    def _at(self, time_s: float) -> ConstantPlan:
        self.asked.append(time_s)
        return self.first if time_s < self.at_s else self.then
