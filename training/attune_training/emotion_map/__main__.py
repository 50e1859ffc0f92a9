"""`python -m attune_training.emotion_map`: the command that trains the map."""

from attune_training.emotion_map.command import emotion_map_command

if __name__ == "__main__":
    emotion_map_command()
