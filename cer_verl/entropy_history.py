"""TECA and length of every training step, for the padding alarm, kept through checkpoints.

In: their means, one pair a step. Out: the alarm of trainer/training/padding_alarm.py, logged as 1.0 and, when it begins
to sound, printed once. verl's loggers can't be read back, so the history is a small JSON file in every checkpoint.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from trainer.training.padding_alarm import padding_alarm

FILE_NAME = "cer_history.json"

logger = logging.getLogger(__name__)


class EntropyHistory:
    """The means of TECA (nats) and of length (tokens), oldest first."""

    def __init__(self) -> None:
        self.teca: list[float] = []
        self.length: list[float] = []
        self._sounding = False

    def add(self, teca: float, length: float) -> bool:
        """Notes a step and returns whether the alarm sounds: TECA falls while length rises."""
        self.teca.append(teca)
        self.length.append(length)
        alarm = padding_alarm(self.teca, self.length)
        if alarm is not None and not self._sounding:
            logger.warning("%s", alarm)
        self._sounding = alarm is not None
        return self._sounding

    def save(self, folder: Path) -> None:
        """Writes the history into a checkpoint's folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text(json.dumps({"teca": self.teca, "length": self.length}))

    def load(self, folder: Path) -> None:
        """Takes the history of a checkpoint; one of another trainer has none, and the alarm starts anew."""
        file = folder / FILE_NAME
        if not file.exists():
            logger.warning("%s has no %s: the padding alarm starts anew", folder, FILE_NAME)
            return
        history = json.loads(file.read_text())
        self.teca, self.length = list(history["teca"]), list(history["length"])
