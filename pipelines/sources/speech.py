"""2,766 telephone prompts as log-mel spectrograms: English, Spanish, French, Italian or Russian?

The clips are those of Debian's packages `asterisk-core-sounds-{en,es,fr,it,ru}-wav` (8 kHz): no package registry of
Python has them, so this dataset is prepared where they are installed, and `dvc repro` does not ask for it.

A row is the first two seconds of a clip from its first sound on: 24 mel bands, windows of 32 ms every 20 ms, at most
100 steps, natural logarithm of the energy.  A shorter clip ends in NaN.

Divided by prompt: what is said in one stage is said in no other, in no language.  It cannot be divided by speaker, for
there is one a language (one woman speaks both English and Spanish): a network may tell languages by voices, and what
it scores here says little about speakers it has never heard.
"""

from __future__ import annotations

import wave
import zlib
from pathlib import Path

import numpy as np

from neurofleet.data.catalog import NEEDS
from neurofleet.data.splits import assign, default_sizes
from neurofleet.data.write import Raw
from neurofleet.errors import DataError

SOUNDS = Path("/usr/share/asterisk/sounds")
LANGUAGES = {"en_US": "english", "es_MX": "spanish", "fr_CA": "french", "it_IT": "italian", "ru_RU": "russian"}
RATE, WINDOW, HOP, BANDS, STEPS = 8000, 256, 160, 24, 100


def mel_filters() -> np.ndarray:
    """Triangles [BANDS, WINDOW/2+1], evenly spaced in mel between 0 and 4 kHz."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    left, middle, right = (corners[start : start + BANDS, None] for start in range(3))
    return np.clip(np.minimum((hertz - left) / (middle - left), (right - hertz) / (right - middle)), 0, None)


def log_mel(samples: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Samples to [steps, BANDS], from the first window that is a hundredth as loud as the loudest; rounded, since the
    last bits of a Fourier transform depend on the machine."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW)
    energies = np.abs(np.fft.rfft(windows)) ** 2 @ filters.T
    loudness = energies.sum(axis=1)
    start = int(np.argmax(loudness > 0.01 * loudness.max()))
    return np.round(np.log(energies[start : start + STEPS] + 1), 3)


def clips() -> list[tuple[str, str, Path]]:
    """Language, prompt and file of each clip, in order; silence is left out."""
    found = []
    for place, language in LANGUAGES.items():
        for folder in sorted(SOUNDS.glob(f"{place}_[fm]_*")):
            prompts = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
            found += [(language, prompt, folder / prompt) for prompt in prompts if not prompt.startswith("silence/")]
    lacking = set(LANGUAGES.values()) - {language for language, _, _ in found}
    if lacking:
        raise DataError(f"preparing 'speech' needs {NEEDS['speech']}; {SOUNDS} lacks {', '.join(sorted(lacking))}")
    return found


def load() -> Raw:
    filters, sequences, languages, prompts = mel_filters(), [], [], []
    for language, prompt, path in clips():
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64)
        if len(samples) < WINDOW + 10 * HOP or not samples.any():
            continue  # shorter than a quarter of a second
        sequence = np.full((STEPS, BANDS), np.nan)
        features = log_mel(samples, filters)
        sequence[: len(features)] = features
        sequences.append(sequence)
        languages.append(list(LANGUAGES.values()).index(language))
        prompts.append(prompt)
    names, prompt_of = np.unique(prompts, return_inverse=True)
    checksums = np.array([zlib.crc32(name.encode()) for name in names])  # a prompt keeps its place when others come
    parts = assign(checksums, np.zeros(len(names), dtype=np.int64), default_sizes(len(names)), split=0)
    return Raw(
        kind="sequence",
        task="multiclass",
        inputs={"log_mel": np.stack(sequences)},
        targets={"language": np.array(languages)},
        classes=tuple(LANGUAGES.values()),
        stages={stage: np.flatnonzero(np.isin(prompt_of, part)) for stage, part in parts.items()},
        source="Debian asterisk-core-sounds-{en,es,fr,it,ru}-wav, divided by prompt; one speaker a language",
    )
