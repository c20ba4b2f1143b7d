"""How a refinement is done: what a person chooses, stored with the run."""

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

    members: ids of front members. budget: of everything, the last measurements included. minutes: after which nothing
    new is proposed; 0: no limit. fidelities: shares of the training budget at which candidates may be tried. ranges:
    see `star.refine.recipe_space.recipe_space`. change: what may be changed. aim: members, a lower loss of each, at no
    more parameters, cache and so on; or front, hypervolume, whatever the size. policy: whether the learned policy may
    choose (where it wins in imagination). design: trials before the first proposal, apart from the members themselves,
    dealt out among them. confirm: fresh seeds of each candidate that is measured at the end. parallel: proposals at one
    time; part of what decides the results, so it is fixed when a refinement begins, whatever the number of workers
    later on; 0: as many as there are workers then.
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
        if self.change not in CHANGES:
            raise UserError(f"what to change is {self.change!r}; it must be one of {', '.join(CHANGES)}")
        if self.aim not in AIMS:
            raise UserError(f"the aim is {self.aim!r}; it must be one of {', '.join(AIMS)}")
        rungs = self.fidelities
        if not rungs or list(rungs) != sorted(set(rungs)) or rungs[-1] != 1.0 or rungs[0] < 0.01:
            raise UserError(
                f"the fidelities are {', '.join(f'{share:g}' for share in rungs)}; give rising shares from 0.01 that end at 1, such as 0.25,1"
            )
        for name, least in (("design", 0), ("confirm", 1), ("parallel", 0), ("minutes", 0), ("budget", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise UserError(f"{name} of the refinement is {value}; it must be at least {least}")

    @property
    def id(self) -> str:
        """8 hexadecimal digits, of all that a person chooses to try: a refinement may go on with a larger budget."""
        decides = {key: value for key, value in self.to_json().items() if key not in ("budget", "minutes", "parallel")}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict) -> "RefineSettings":
        return RefineSettings(**data)

    # What it costs.

    @property
    def design_cost(self) -> float:
        """Every member itself, twice at full length and twice at the cheapest, and the design at the cheapest."""
        cheap = self.fidelities[0]
        return len(self.members) * min(2, self.confirm) * (1.0 + (cheap if cheap < 1 else 0.0)) + self.design * cheap

    @property
    def extra(self) -> int:
        """Candidates measured at the end besides the best of each member: others that may be on the front, where that
        is the aim.
        """
        return len(self.members) - 1 if self.aim == "front" else 0

    @property
    def confirm_cost(self) -> float:
        """At most. The member's first two fresh seeds are in the design already."""
        return self.confirm * (len(self.members) + self.extra) + max(0, self.confirm - 2) * len(self.members)

    @property
    def least_budget(self) -> float:
        return self.design_cost + self.confirm_cost + 1.0
