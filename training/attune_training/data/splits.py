"""Cutting a corpus into train, validation and test: the paper's random split, and speaker-independent ones.

A random split (section III-B) leaks: the same speaker, and in scripted dialogues the same sentence, is in both training
and test. So every policy states whether it is speaker-independent, and tables show both kinds.

Policies are written as short strings:

    stratified                          80/10/10 at random, balanced by binned labels
    leave-one-session-out:K             test on session K, validate on the next one
    held-out-speakers                   speakers drawn 80/10/10
    held-out-speakers:17-20/21-24       these speakers for validation/test
    given                               the corpus's own split
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

from attune_training.config import DIMENSIONS, TARGET_NAMES, Target
from attune_training.data.utterance import SPLIT_NAMES, Utterance

__all__ = [
    "GivenSplit",
    "HeldOutSpeakers",
    "LeaveOneSessionOut",
    "Split",
    "SplitError",
    "SplitPolicy",
    "Stratified",
    "check_test_kept",
    "parse_split_policy",
]

_TENTHS = 10
_VALENCE_BINS = 5
_AROUSAL_DOMINANCE_BINS = 3

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


class SplitError(ValueError):
    """An unknown policy, or a policy that does not fit the corpus."""


@dataclass(frozen=True, slots=True)
class Split:
    """The three disjoint parts, whose union is the corpus."""

    train: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]


class SplitPolicy(ABC):
    """A way to split a corpus. `str(policy)` is what `parse_split_policy` reads."""

    is_speaker_independent: ClassVar[bool]

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the policy in tables."""

    @abstractmethod
    def split(self, utterances: Sequence[Utterance], target: Target, seed: int) -> Split:
        """Return the parts; the same utterances, target and seed give the same parts.

        Raises:
            SplitError: the policy does not fit these utterances.
        """


@dataclass(frozen=True, slots=True)
class Stratified(SplitPolicy):
    """80/10/10 at random, stratified by binned labels (paper, section III-B).

    Bins are of equal width between the corpus's lowest and highest label: 5 of valence for the valence model (the
    paper gives no number), 3 x 3 of arousal and dominance for the arousal-dominance model, and both together,
    5 x 3 x 3, for a joint model. Bins of fewer than ten utterances cannot be stratified: the two rarest are merged
    until none is left.
    """

    is_speaker_independent: ClassVar[bool] = False

    def __str__(self) -> str:
        return "stratified"

    @property
    def label(self) -> str:
        """Name of the policy in tables."""
        return "random, stratified"

    def split(self, utterances: Sequence[Utterance], target: Target, seed: int) -> Split:
        """Return the parts: one tenth for the test, one for validation."""
        if len(utterances) < _TENTHS:
            raise SplitError(f"a stratified split needs at least {_TENTHS} utterances; there are {len(utterances)}")
        bins = _merge_rare(_bins(utterances, target))
        tenths = StratifiedKFold(_TENTHS, shuffle=True, random_state=seed).split(bins, bins)
        (_, test), (_, validation) = next(tenths), next(tenths)
        names = np.full(len(utterances), "train", dtype=object)
        names[test], names[validation] = "test", "validation"
        return _parts(utterances, names)


@dataclass(frozen=True, slots=True)
class LeaveOneSessionOut(SplitPolicy):
    """Test on one session, validate on the next in order (after the last, the first), train on the others.

    Validation is a whole session, since its two speakers share dialogues and scripts.
    """

    is_speaker_independent: ClassVar[bool] = True

    session: str

    def __str__(self) -> str:
        return f"leave-one-session-out:{self.session}"

    @property
    def label(self) -> str:
        """Name of the policy in tables."""
        return f"session {self.session} left out"

    def split(self, utterances: Sequence[Utterance], target: Target, seed: int) -> Split:
        """Return the parts; neither the target nor the seed changes them."""
        sessions = sorted({utterance.session for utterance in utterances}, key=_natural_order)
        if "" in sessions:
            raise SplitError(f"{self}: not every utterance of this corpus has a session")
        if self.session not in sessions:
            raise SplitError(f"{self}: the sessions of this corpus are {', '.join(sessions)}")
        if len(sessions) < len(SPLIT_NAMES):
            raise SplitError(f"{self}: at least three sessions are needed; there are {', '.join(sessions)}")
        following = sessions[(sessions.index(self.session) + 1) % len(sessions)]
        names = {self.session: "test", following: "validation"}
        _check_one_session_each(self, utterances)
        return _parts(utterances, [names.get(utterance.session, "train") for utterance in utterances])


@dataclass(frozen=True, slots=True)
class HeldOutSpeakers(SplitPolicy):
    """Speakers of the validation and the test part occur in no other part.

    `validation` and `test` name speakers, or ranges of the number that a speaker's name ends with (`17-20` holds
    `actor-17`; `1` is both Ses01F and Ses01M); both empty: a tenth of the speakers each is drawn, at least one.
    """

    is_speaker_independent: ClassVar[bool] = True

    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.test:
            return "held-out-speakers"
        return f"held-out-speakers:{','.join(self.validation)}/{','.join(self.test)}"

    @property
    def label(self) -> str:
        """Name of the policy in tables."""
        return f"held-out speakers {', '.join(self.test)}" if self.test else "held-out speakers"

    def split(self, utterances: Sequence[Utterance], target: Target, seed: int) -> Split:
        """Return the parts; the target does not change them, the seed only which speakers are drawn."""
        speakers = sorted({utterance.speaker for utterance in utterances}, key=_natural_order)
        if "" in speakers:
            raise SplitError(f"{self}: not every utterance of this corpus names its speaker")
        if len(speakers) < len(SPLIT_NAMES):
            raise SplitError(f"{self}: at least three speakers are needed; there are {', '.join(speakers)}")
        validation, test = self._chosen(speakers) if self.test else _drawn(speakers, seed)
        names = dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")
        return _parts(utterances, [names.get(utterance.speaker, "train") for utterance in utterances])

    def _chosen(self, speakers: Sequence[str]) -> tuple[set[str], set[str]]:
        validation, test = (
            {name for item in items for name in self._matching(item, speakers)}
            for items in (self.validation, self.test)
        )
        if both := validation & test:
            raise SplitError(f"{self}: {', '.join(sorted(both))} cannot be in validation and test")
        if len(validation | test) == len(speakers):
            raise SplitError(f"{self}: no speaker is left to train on")
        return validation, test

    def _matching(self, item: str, speakers: Sequence[str]) -> list[str]:
        if item in speakers:
            return [item]
        found = []
        if numbers := _NUMBERS.fullmatch(item):
            lowest, highest = int(numbers[1]), int(numbers[2] or numbers[1])
            found = [name for name in speakers if lowest <= _last_number(name) <= highest]
        if not found:
            raise SplitError(f"{self}: {item!r} matches no speaker of this corpus: {', '.join(speakers)}")
        return found


@dataclass(frozen=True, slots=True)
class GivenSplit(SplitPolicy):
    """The corpus's own split; it is not known to be speaker-independent, and not counted as such."""

    is_speaker_independent: ClassVar[bool] = False

    def __str__(self) -> str:
        return "given"

    @property
    def label(self) -> str:
        """Name of the policy in tables."""
        return "the corpus's own split"

    def split(self, utterances: Sequence[Utterance], target: Target, seed: int) -> Split:
        """Return the parts; neither the target nor the seed changes them."""
        counts = Counter(utterance.split for utterance in utterances)
        if set(counts) != set(SPLIT_NAMES):
            found = ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items()))
            raise SplitError(f"given: every utterance must be in {', '.join(SPLIT_NAMES)}; this corpus has {found}")
        return _parts(utterances, [utterance.split for utterance in utterances])


def parse_split_policy(text: str) -> SplitPolicy:
    """Read a policy's short string.

    Raises:
        SplitError: the policy is unknown, or its argument after the colon is invalid.
    """
    name, _, detail = text.strip().partition(":")
    parsers: dict[str, Callable[[str], SplitPolicy]] = {
        "stratified": lambda detail: _without_detail(name, detail, Stratified()),
        "leave-one-session-out": _parse_session,
        "held-out-speakers": _parse_speakers,
        "given": lambda detail: _without_detail(name, detail, GivenSplit()),
    }
    if name not in parsers:
        raise SplitError(
            f"{text!r} is no split policy; the policies are stratified, leave-one-session-out:K, held-out-speakers, "
            "held-out-speakers:VALIDATION/TEST (such as 17-20/21-24) and given"
        )
    return parsers[name](detail)


def check_test_kept(split: Split) -> None:
    """Make sure that what a corpus sets aside for the last test is in no other part.

    Raises:
        SplitError: it is.
    """
    count = sum(item.split == "test" for item in (*split.train, *split.validation))
    if count:
        raise SplitError(
            f"{count} utterances of the corpus's own test part would be trained on or choose the epoch; it is for the "
            "last test alone: use the split given"
        )


def _without_detail(name: str, detail: str, policy: SplitPolicy) -> SplitPolicy:
    if detail:
        raise SplitError(f"{name} stands alone, without :{detail}")
    return policy


def _parse_session(detail: str) -> SplitPolicy:
    if not detail:
        raise SplitError("leave-one-session-out needs the session to test on, such as leave-one-session-out:5")
    return LeaveOneSessionOut(detail)


def _parse_speakers(detail: str) -> SplitPolicy:
    if not detail:
        return HeldOutSpeakers()
    lists = [tuple(item.strip() for item in part.split(",") if item.strip()) for part in detail.split("/")]
    if len(lists) != 2 or not all(lists):
        raise SplitError(
            f"held-out-speakers:{detail} must name the speakers for validation and for the test, such as "
            "held-out-speakers:17-20/21-24"
        )
    return HeldOutSpeakers(*lists)


def _bins(utterances: Sequence[Utterance], target: Target) -> npt.NDArray[np.int64]:
    """Return the composite bin, [n], of each utterance's labels that the target names."""
    labels = np.array([utterance.vad() for utterance in utterances])  # [n, 3]
    columns = [DIMENSIONS.index(name) for name in TARGET_NAMES[target]]
    if np.isnan(labels[:, columns]).any():
        raise SplitError("stratified: not every utterance of this corpus has all labels; use the split given")
    labels = np.nan_to_num(labels)  # of dimensions that are not asked for
    valence = _equal_width(labels[:, 0], _VALENCE_BINS)
    arousal, dominance = (_equal_width(labels[:, column], _AROUSAL_DOMINANCE_BINS) for column in (1, 2))
    both = arousal * _AROUSAL_DOMINANCE_BINS + dominance
    composites = {
        "valence": valence,
        "arousal_dominance": both,
        "valence_arousal_dominance": valence * _AROUSAL_DOMINANCE_BINS**2 + both,
    }
    return composites[target]


def _equal_width(labels: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the bin, 0 to `count` - 1, of each label: bins of equal width from the lowest to the highest."""
    edges = np.linspace(labels.min(), labels.max(), count + 1)
    return np.digitize(labels, edges[1:-1])


def _merge_rare(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bins with the two rarest merged until each holds at least ten utterances."""
    merged = bins.copy()
    counts = Counter(merged.tolist())
    while len(counts) > 1 and min(counts.values()) < _TENTHS:
        (rarest, _), (next_rarest, _) = sorted(counts.items(), key=lambda item: (item[1], item[0]))[:2]
        merged[merged == rarest] = next_rarest
        counts[next_rarest] += counts.pop(rarest)
    return merged


def _drawn(speakers: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Draw a tenth of the speakers, at least one, for validation, and as many others for the test."""
    shuffled = [speakers[index] for index in np.random.default_rng(seed).permutation(len(speakers))]
    count = max(1, round(len(speakers) / _TENTHS))
    return shuffled[:count], shuffled[count : 2 * count]


def _check_one_session_each(policy: SplitPolicy, utterances: Sequence[Utterance]) -> None:
    """Raise SplitError if a speaker is in two sessions or unknown: the parts would not be speaker-independent."""
    session_of: dict[str, str] = {}
    for utterance in utterances:
        if not utterance.speaker:
            raise SplitError(f"{policy}: not every utterance of this corpus names its speaker")
        session = session_of.setdefault(utterance.speaker, utterance.session)
        if session != utterance.session:
            raise SplitError(
                f"{policy}: {utterance.speaker} speaks in the sessions {session} and {utterance.session}; "
                "choose held-out-speakers"
            )


def _natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts `10` after `9`."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)


def _last_number(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1


def _parts(utterances: Sequence[Utterance], names: Iterable[str]) -> Split:
    parts: dict[str, list[Utterance]] = {name: [] for name in SPLIT_NAMES}
    for utterance, name in zip(utterances, names, strict=True):
        parts[name].append(utterance)
    return Split(*(tuple(parts[name]) for name in SPLIT_NAMES))
