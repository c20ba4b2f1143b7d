"""The run record: a directory with one SQLite file that one process writes and any process may read.

    run.sqlite              everything: the configuration, and all events in their order
    run.lock                locked by the process that is evolving this run
    candidates/ID/          result.json (only until its content is in the record), weights.safetensors
    refined/ID/             the same for the trials of a refinement
    progress/               the latest progress of running workers, for the display

Learning curves are in the record too, so a copy of this file is the whole run except for its weights. Paths are never
stored, so a run can be moved and copied. From STAR this package imports only `star.errors`.
"""

from star.store.database import Event, Store, read_events, read_meta
from star.store.files import CandidateFiles, write_json
from star.store.lock import RunLock
from star.store.record import Proposal, Record, Result, Rung
from star.store.refinements import Refinement, Trial, TrialResult

__all__ = [
    "CandidateFiles",
    "Event",
    "Proposal",
    "Record",
    "Refinement",
    "Result",
    "RunLock",
    "Rung",
    "Store",
    "Trial",
    "TrialResult",
    "read_events",
    "read_meta",
    "write_json",
]
