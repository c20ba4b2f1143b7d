"""The run record: a directory whose one SQLite file holds the truth, written by one process, read by anyone.

    run.sqlite              everything: configuration, and the list of events in the order in which they happened
    run.lock                held by the process that is evolving this run
    candidates/ID/          result.json (only until its content is in the record), weights.safetensors
    refined/ID/             the same of trials of a refinement
    progress/               what running workers last said, for the display

Learning curves live in the record too, not beside it: they are small, and a copy of the one file is then the
whole run but for the weights. Paths are never stored, so a run can be moved and copied. Imports `star.errors`.
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
