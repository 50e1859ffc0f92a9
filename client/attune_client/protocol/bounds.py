"""Every bound of what a request may hold, declared once: clients, gateway and server check by these numbers.

`attune_client.protocol.checks` has the checks of single options; `MusicSpec` and `SamplingSettings` check themselves.
"""

from __future__ import annotations

# --- the recording ---

MAX_MESSAGE_BYTES = 2**27
"""Largest request that a server takes, 128 MiB: it is in memory several times while it is worked at."""

MAX_AUDIO_BYTES = MAX_MESSAGE_BYTES - 2**20
"""Largest recording that a client sends: `MAX_SPEECH_S` of 16-bit stereo at 48 kHz are 0.87 of it."""

MAX_SPEECH_S = 600.0
"""Longest recording that is accepted, in seconds."""

SPEECH_RATES_HZ = (4_000, 384_000)
"""Lowest and highest sample rate of a recording, in Hz."""

MAX_SPEECH_SAMPLES = 115_200_000
"""Most samples of a recording, its channels counted together: ten minutes of stereo at 96 kHz."""

MAX_SEGMENT_S = 8.0
"""Longest speech segment that the regressors see, in seconds (paper, section III-C2)."""

# --- words and feelings ---

MAX_TEXT_CHARS = 2_000
"""Longest text to search by, or to take for a prompt: about what the sentence encoder reads (`MAX_TOKENS`)."""

MAX_TEXT_BYTES = 2**20
"""Longest text of any kind that a server looks at: each model has narrower bounds, and says what is wrong."""

MAX_TRANSCRIPT_BYTES = 4 * MAX_TEXT_CHARS
"""Longest transcript of one segment."""

MAX_TOKENS = 512
"""Longest tokenised transcript (paper, section III-C2)."""

VAD_LIMITS = (1.0, 5.0)
"""Least and greatest valence, arousal and dominance."""

NEUTRAL_VAD = 3.0
"""The middle of the three scales."""

# --- the music ---

MIN_MUSIC_S, MAX_MUSIC_S = 1.0, 600.0
"""Shortest and longest music that one request may ask for, in seconds."""

DEFAULT_MUSIC_S = 30.0
"""Length of the music where a request asks for none, in seconds."""

LENGTH_TOLERANCE_S = 0.02
"""How much shorter than asked for music may be: an engine may play whole frames of this length."""

MAX_SEED = 2**63 - 1
"""Largest seed of a piece of music."""

MIN_TEMPO_BPM, MAX_TEMPO_BPM = 40.0, 180.0
"""Slowest and fastest tempo of a specification, in beats per minute."""

MAX_TEMPERATURE = 10.0
"""Highest temperature of an engine that samples; the lowest, 0, takes the likeliest token."""

MIN_GUIDANCE, MAX_GUIDANCE = 1.0, 20.0
"""Least and greatest scale of classifier-free guidance; 1 is none."""

# --- time ---

MAX_TIMEOUT_S = 1e6
"""Longest timeout of a client, in seconds: eleven days. Much longer ones overflow the clocks that take them."""

MAX_DEADLINE_S = 3_600.0
"""Longest time that a request may be given by `deadline_s`, in seconds; it must be above 0."""
