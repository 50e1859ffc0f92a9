"""What runs inside the server: audio, transcription, retrieval, prompts, music engines; and its launcher."""
