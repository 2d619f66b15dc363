"""What a run leaves to read: a CSV file of its learning curve, and TensorBoard if it is installed and wanted."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from .snapshot import write_whole

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the whole learning curve anew, so that a resumed run leaves no epoch twice."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


class TensorBoard:
    """Scalars for TensorBoard; steps of an earlier attempt at or after ``first_epoch`` are hidden."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("--tensorboard needs tensorboard: pip install tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
