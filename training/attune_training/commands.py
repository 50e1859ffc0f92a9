"""The commands of this package: `attune train`, `attune evaluate`, `attune experiments`, `attune synthesise`."""

from __future__ import annotations

import click

from attune_training.calibration.command import calibration
from attune_training.edge import DefaultGroup
from attune_training.emotion_choice.command import emotion_choice_command
from attune_training.emotion_map.command import emotion_map_command
from attune_training.evaluation.command import corpus
from attune_training.evaluation.stories.command import negations, stories
from attune_training.evaluation.stories.narrations import narrations
from attune_training.evaluation.stories.transcription import transcription
from attune_training.experiments.command import experiments
from attune_training.fitting.command import arousal_dominance, joint, valence
from attune_training.synthesis.command import synthesise_command as synthesise

__all__ = ["evaluate", "experiments", "synthesise", "train"]


@click.group()
def train() -> None:
    """Train a model of VAD, all of it or a part; calibrate one; fit the emotion map, or the choice of an emotion."""


for command in (valence, arousal_dominance, joint, calibration):
    train.add_command(command)
train.add_command(emotion_map_command, "emotion-map")
train.add_command(emotion_choice_command, "emotion-choice")


@click.group(cls=DefaultGroup, default="corpus")
def evaluate() -> None:
    """Measure a model: on a corpus (when no name is given), on stories and narrations, on sentences with a negation."""


for command in (corpus, stories, narrations, negations, transcription):
    evaluate.add_command(command)
