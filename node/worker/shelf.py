"""Models that a worker has bid on, kept on disk until their jobs are decided.

A bid without its model is a lost stake, so a model is on the disk, to the last byte, before its commitment leaves this
process; after a restart it is found again by that commitment alone.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from crdtchain.codec import format_cid
from crdtchain.scalars import BlobId, OpId


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a kept model.

    Attributes:
        model: its CID's 36 bytes in hex.
        seed: what it was trained with.
        measured: its loss as measured here, micros.
        announced: the loss of the bid, micros.
    """

    model: str
    seed: int
    measured: int
    announced: int

    def model_id(self) -> BlobId:
        """Return the model's CID."""
        return BlobId(bytes.fromhex(self.model))


class Shelf:
    """The models of all jobs, in one folder with a folder for each job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder_of(self, job: OpId) -> Path:
        """Return the folder of a job: its models, and its files under `files`."""
        return self._folder / format_cid(job)

    def keep(self, job: OpId, commit: bytes, data: bytes, note: Note) -> None:
        """Put a model on the disk under its commitment, durably.

        Raises:
            OSError: the disk can't take it.
        """
        folder = self.folder_of(job) / "models"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_durably(folder / f"{commit.hex()}.json", json.dumps(asdict(note)).encode())
        _write_durably(folder / f"{commit.hex()}.model", data)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def find(self, job: OpId, commit: bytes) -> bytes | None:
        """Return the model behind a commitment, or None."""
        try:
            return (self.folder_of(job) / "models" / f"{commit.hex()}.model").read_bytes()
        except FileNotFoundError:
            return None

    def find_note(self, job: OpId, commit: bytes) -> Note | None:
        """Return what is known of the model behind a commitment, or None."""
        try:
            return Note(**json.loads((self.folder_of(job) / "models" / f"{commit.hex()}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def seeds(self, job: OpId) -> set[int]:
        """Return the seeds of all kept models of a job."""
        notes = (self.find_note(job, bytes.fromhex(path.stem)) for path in self._notes(job))
        return {note.seed for note in notes if note is not None}

    def _notes(self, job: OpId) -> list[Path]:
        return sorted((self.folder_of(job) / "models").glob("*.json"))

    def forget_files(self, job: OpId) -> None:
        """Remove a job's files, which can be fetched again; its models stay."""
        shutil.rmtree(self.folder_of(job) / "files", ignore_errors=True)


def _write_durably(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
