"""`python -m attune_training.emotion_map`: the same command, for a machine without the `attune` command."""

from attune_training.emotion_map.command import emotion_map_command

if __name__ == "__main__":
    emotion_map_command()
