"""How a refinement is done: the settings that a user chooses, stored with the run."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field

from star.errors import UserError

CHANGES = ("both", "recipes", "edits")
AIMS = ("members", "front")


@dataclass(frozen=True)
class RefineSettings:
    """Costs are in full trainings: the training budget of one candidate of the search.

    members: ids of front members. budget: of everything, the last measurements included. minutes: no new proposal after
    that time; 0: no limit. fidelities: shares of the training budget at which candidates may be tried. ranges: see
    `star.training.recipe_space`. change: what may change. aim: "members", a lower loss of each at no larger size, or
    "front", hypervolume at any size. policy: whether the learned policy may choose. design: trials before the first
    proposal, dealt out among the members. confirm: fresh seeds of each candidate that is measured at the end. parallel:
    proposals at one time, fixed when a refinement starts because results depend on it; 0: one for each worker.

    Raises UserError for values out of range.
    """

    members: tuple[str, ...]
    budget: float = 60.0
    minutes: float = 0.0
    fidelities: tuple[float, ...] = (1.0,)
    ranges: dict[str, str] = field(default_factory=dict)
    change: str = "both"
    aim: str = "members"
    policy: bool = True
    design: int = 7
    confirm: int = 3
    parallel: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("members", "fidelities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for what, value, legal in (("what to change", self.change, CHANGES), ("the aim", self.aim, AIMS)):
            if value not in legal:
                raise UserError(f"{what} is {value!r}; it must be one of {', '.join(legal)}")
        rungs = self.fidelities
        if not rungs or list(rungs) != sorted(set(rungs)) or rungs[-1] != 1.0 or rungs[0] < 0.01:
            given = ", ".join(f"{share:g}" for share in rungs)
            raise UserError(f"the fidelities are {given}; give rising shares from 0.01 that end at 1, such as 0.25,1")
        for name, least in (("design", 0), ("confirm", 1), ("parallel", 0), ("minutes", 0), ("budget", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise UserError(f"{name} of the refinement is {value}; it must be at least {least}")

    @property
    def id(self) -> str:
        """8 hexadecimal digits of all settings but budget, time and workers: those may change when it is continued."""
        decides = {key: value for key, value in self.to_json().items() if key not in ("budget", "minutes", "parallel")}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]

    def to_json(self) -> dict:
        """JSON-able; `RefineSettings(**data)` reads it."""
        return dataclasses.asdict(self)

    @property
    def design_cost(self) -> float:
        """Every member twice at full length and twice at the lowest fidelity, and the design at the lowest."""
        cheap = self.fidelities[0]
        return len(self.members) * min(2, self.confirm) * (1.0 + (cheap if cheap < 1 else 0.0)) + self.design * cheap

    @property
    def extra(self) -> int:
        """Candidates measured at the end besides the best of each member, where the aim is the front."""
        return len(self.members) - 1 if self.aim == "front" else 0

    @property
    def confirm_cost(self) -> float:
        """At most. The first two fresh seeds of a member are in the design already."""
        return self.confirm * (len(self.members) + self.extra) + max(0, self.confirm - 2) * len(self.members)

    def check_budget(self) -> None:
        """Raises UserError if the budget is too small for the design, one proposal and the last measurements."""
        least = self.design_cost + self.confirm_cost + 1.0
        if self.budget < least:
            raise UserError(
                f"a budget of {self.budget:g} full trainings is too small: the initial design of {len(self.members)} "
                f"members takes {self.design_cost:g} and the last measurements {self.confirm_cost:g}; "
                f"give at least {least:g}, fewer members or fewer seeds"
            )
