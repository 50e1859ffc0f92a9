"""From a recording to speech segments, their transcripts, and the tokens of these."""
