"""The sub-commands that talk to a server: `attune analyse`, `attune play`, `attune models`; one topic per module."""

from attune_client.commands.analysis import analyse
from attune_client.commands.listing import models
from attune_client.commands.options import AUDIO_FILE, server_options
from attune_client.commands.playing import play

__all__ = ["AUDIO_FILE", "analyse", "models", "play", "server_options"]
