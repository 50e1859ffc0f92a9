"""The emotion map: from valence, arousal and dominance to one of 40 emotions (paper, section III-D).

A lexicon of words with VAD ratings is scaled to -1..1 (eq 20) and clustered by K-means into 40 clusters that start from
the 40 anchors of the knowledge base (eq 21); a small CNN learns the clusters (eq 22). Run it with:

    attune train emotion-map --lexicon glasgow_norms.csv --output DIR
"""

from attune_training.emotion_map.anchors import Anchors, AnchorsError, read_anchors
from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.emotion_map.clusters import (
    ClusterReport,
    EmotionMap,
    OctantAgreement,
    fit_emotion_map,
    octant_agreement,
    octants_of,
    report_clusters,
)
from attune_training.emotion_map.fitting import MapConfig, Split, TrainedMap, split_terms, train_emotion_map
from attune_training.emotion_map.lexicon import Lexicon, LexiconError, read_lexicon
from attune_training.emotion_map.picture import draw_emotion_map
from attune_training.emotion_map.scale import Scale, UnknownScaleError, recognise_scale
from attune_training.emotion_map.storage import load_emotion_classifier, load_emotion_map, save_emotion_map

__all__ = [
    "Anchors",
    "AnchorsError",
    "ClusterReport",
    "EmotionClassifier",
    "EmotionMap",
    "Lexicon",
    "LexiconError",
    "MapConfig",
    "OctantAgreement",
    "Scale",
    "Split",
    "TrainedMap",
    "UnknownScaleError",
    "draw_emotion_map",
    "fit_emotion_map",
    "load_emotion_classifier",
    "load_emotion_map",
    "octant_agreement",
    "octants_of",
    "read_anchors",
    "read_lexicon",
    "recognise_scale",
    "report_clusters",
    "save_emotion_map",
    "split_terms",
    "train_emotion_map",
]
