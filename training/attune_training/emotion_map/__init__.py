"""The emotion map: from valence, arousal and dominance to one of 40 emotions (paper, section III-D).

A lexicon of words with VAD ratings is scaled to -1..1 (eq 20) and clustered by K-means into 40 clusters that start from
the 40 anchors of the knowledge base (eq 21); a small CNN learns the clusters (eq 22). Run it with:

    python -m attune_training.emotion_map --lexicon glasgow_norms.csv --anchors emotions.yaml --output DIR
"""

from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.emotion_map.clusters import ClusterReport, EmotionMap, fit_emotion_map, octants_of, report_clusters
from attune_training.emotion_map.fitting import MapConfig, Split, TrainedMap, split_terms, train_emotion_map
from attune_training.emotion_map.lexicon import Anchors, Lexicon, LexiconError, read_anchors, read_lexicon
from attune_training.emotion_map.storage import load_emotion_classifier, load_emotion_map, save_emotion_map

__all__ = [
    "Anchors",
    "ClusterReport",
    "EmotionClassifier",
    "EmotionMap",
    "Lexicon",
    "LexiconError",
    "MapConfig",
    "Split",
    "TrainedMap",
    "fit_emotion_map",
    "load_emotion_classifier",
    "load_emotion_map",
    "octants_of",
    "read_anchors",
    "read_lexicon",
    "report_clusters",
    "save_emotion_map",
    "split_terms",
    "train_emotion_map",
]
