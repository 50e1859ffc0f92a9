"""The clusters of a lexicon: min-max scaling (eq 20) and K-means from the 40 anchors (eq 21; paper, section III-D)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from attune_training.emotion_map.anchors import Anchors
from attune_training.emotion_map.lexicon import Lexicon
from attune_training.emotion_map.scale import Array
from attune_training.providers import octant_of

__all__ = [
    "ClusterReport",
    "EmotionMap",
    "OctantAgreement",
    "fit_emotion_map",
    "octant_agreement",
    "octants_of",
    "report_clusters",
]

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EmotionMap:
    """The scaling and the clusters: `minimum` and `maximum` [3] on 1..5, `centroids` [K, 3] on -1..1."""

    labels: tuple[str, ...]
    minimum: Array
    maximum: Array
    centroids: Array

    def normalise(self, vad: Array) -> Array:
        """Scale points [N, 3] from 1..5 to -1..1 by the lexicon's extremes (equation 20)."""
        points: Array = 2.0 * (vad - self.minimum) / (self.maximum - self.minimum) - 1.0
        return points

    def denormalise(self, points: Array) -> Array:
        """Invert `normalise`."""
        return (points + 1) / 2 * (self.maximum - self.minimum) + self.minimum

    def assign(self, vad: Array) -> Labels:
        """Return the cluster [N] of each point [N, 3] on 1..5: the index of the nearest centroid."""
        return _nearest(self.normalise(vad), self.centroids)


def _nearest(points: Array, centroids: Array) -> Labels:
    distances = ((points[:, None] - centroids[None]) ** 2).sum(2)  # [N, K]
    nearest: Labels = distances.argmin(1)
    return nearest


def fit_emotion_map(lexicon: Lexicon, anchors: Anchors, anchor_weight: float) -> EmotionMap:
    """Cluster the lexicon: K-means on the scaled terms, started from the anchors (equations 20 and 21).

    The anchors are observations too, each with the weight of `anchor_weight` average clusters of terms. Most terms of a
    lexicon are neutral, and without this weight K-means drifts towards them (a third of the clusters leave their
    emotion's octant).
    """
    minimum, maximum = lexicon.vad.min(0), lexicon.vad.max(0)
    scaling = EmotionMap(anchors.labels, minimum, maximum, np.empty((0, 3)))
    points, starts = scaling.normalise(lexicon.vad), scaling.normalise(anchors.vad)
    weight = anchor_weight * len(points) / len(starts)
    weights = np.concatenate([np.ones(len(points)), np.full(len(starts), weight)])
    kmeans = KMeans(len(starts), init=starts, n_init=1, max_iter=1000, tol=0.0)
    kmeans.fit(np.concatenate([points, starts]), sample_weight=weights)
    return EmotionMap(anchors.labels, minimum, maximum, kmeans.cluster_centers_.astype(np.float64))


def octants_of(vad: Array) -> list[str]:
    """Return the octant of each point [N, 3] on 1..5, as N strings, by the rule of the knowledge base."""
    return [octant_of((valence, arousal, dominance)) for valence, arousal, dominance in vad.tolist()]


@dataclass(frozen=True, slots=True)
class OctantAgreement:
    """Agreement of a cluster with its emotion's octant.

    `octant` is that of the emotion's anchor, `centroid_octant` that of the cluster's centroid; `terms` is the number of
    terms in the cluster, `share_in_octant` the fraction of them in the emotion's octant (None without terms).
    """

    label: str
    octant: str
    centroid_octant: str
    terms: int
    share_in_octant: float | None


def octant_agreement(emotion_map: EmotionMap, lexicon: Lexicon, anchors: Anchors) -> list[OctantAgreement]:
    """Return each cluster's agreement with its emotion's octant, in class order."""
    clusters = emotion_map.assign(lexicon.vad)
    term_octants = np.array(octants_of(lexicon.vad))
    octants = zip(octants_of(anchors.vad), octants_of(emotion_map.denormalise(emotion_map.centroids)), strict=True)
    agreement = []
    for index, (home, settled) in enumerate(octants):
        own = term_octants[clusters == index]
        share = float((own == home).mean()) if len(own) else None
        agreement.append(OctantAgreement(anchors.labels[index], home, settled, len(own), share))
    return agreement


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """Agreement of all clusters with their emotions.

    `centroids_in_octant`: centroids in the octant of their anchor; `anchors_in_cluster`: anchors in their own cluster;
    `terms_in_octant`: fraction of terms whose octant is their emotion's; `without_terms`: emotions without a term of
    the lexicon; `inertia`: equation 21 over the terms.
    """

    centroids_in_octant: int
    anchors_in_cluster: int
    terms_in_octant: float
    without_terms: list[str]
    inertia: float


def report_clusters(emotion_map: EmotionMap, lexicon: Lexicon, anchors: Anchors) -> ClusterReport:
    """Compare the clusters with the emotions that they started from."""
    agreement = octant_agreement(emotion_map, lexicon, anchors)
    offsets = emotion_map.normalise(lexicon.vad) - emotion_map.centroids[emotion_map.assign(lexicon.vad)]
    return ClusterReport(
        centroids_in_octant=sum(one.octant == one.centroid_octant for one in agreement),
        anchors_in_cluster=int((emotion_map.assign(anchors.vad) == np.arange(len(agreement))).sum()),
        terms_in_octant=sum(one.terms * (one.share_in_octant or 0.0) for one in agreement) / len(lexicon.terms),
        without_terms=[one.label for one in agreement if one.terms == 0],
        inertia=float((offsets**2).sum()),
    )
