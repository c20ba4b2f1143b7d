"""What to train next in a refinement: a pure function of what is recorded, so that one that was killed goes on to the
same trials.

Trial number k is decided from the results of trials 0 ... k - parallel, those after them counting as pending even where
they are done: then neither the number of workers nor the order in which they finish changes anything.

    design      each member as the search trained it, with fresh seeds; recipes that have helped elsewhere, spread ones
                and edits, dealt out
                among the members, as many as there are no earlier refinements of this run to learn from
    proposal    by `star.refine.propose`, over the neighbourhood of all members, until the budget or the time is used up
    confirm     the best, and the members themselves, with fresh seeds: the best of many noisy results is partly luck
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from star.assess import Front, Objective
from star.assess.noise import noise_sd
from star.config import RunConfig
from star.errors import RunFailed
from star.genome import Genome, Space, from_json, to_json
from star.refine.candidates import KINDS, Pool, fidelity_coordinate
from star.refine.encode import Encoder, Setup
from star.refine.neighbourhood import Neighbourhood, Seen, all_edits, ranked
from star.refine.pretrain import pretrained
from star.refine.propose import Settings as ProposalSettings
from star.refine.propose import propose
from star.refine.recipe_space import RecipeSpace, recipe_space
from star.refine.settings import RefineSettings
from star.search.jobs import Candidates, finite
from star.store import Refinement, Trial, TrialResult
from star.surrogate.acquisition import TrustRegion
from star.surrogate.calibration import inflation
from star.surrogate.posterior import Averaged, Observations, fit

REGION = TrustRegion(start=1.0, least=1.0, most=3.0)  # edits: further away is another search, not a refinement


class Planner:
    """Args: the run's config and space; candidates: its cheap objectives; known: genomes of the search by id, members
    included;
    evidence: [(id, loss), ...] of the search; earlier: what other refinements of this run have tried."""

    def __init__(
        self, config: RunConfig, space: Space, candidates: Candidates, settings: RefineSettings, known: Mapping[str, Genome],
        evidence: Sequence[tuple[str, float]], earlier: Sequence[tuple[Trial, TrialResult]] = (),
    ):  # fmt: skip
        self.config, self.settings, self.candidates, self.known, self.evidence = (
            config,
            settings,
            candidates,
            known,
            list(evidence),
        )
        self.earlier = list(earlier)
        self.proposals = ProposalSettings()
        self.recipes: RecipeSpace = recipe_space(config.training, settings.ranges)
        self.neighbourhood = Neighbourhood(self.recipes, space, settings.change)
        self.encoder = Encoder(
            self.recipes,
            candidates.corpus["vocab_size"],
            config.objectives.cache_tokens,
            [(known[id], loss) for id, loss in evidence],
        )
        self.loss: Objective = next(o for o in candidates.objectives if not o.cheap)
        self.exact = [o for o in candidates.objectives if o.cheap]
        self.members = {id: Setup(id, known[id], self.recipes.base) for id in settings.members}

    def next(self, state: Refinement) -> list[Trial] | None:
        """The next trials to be run; [] if results must come first; None when all is done. Raises RunFailed where
        nothing works.
        """
        k, s = len(state.trials), self.settings
        if k < len(self.design):
            return [self.design[k]]
        if state.closed or state.spent + s.fidelities[0] + s.confirm_cost > s.budget * (1 + 1e-9):
            return self._ending(state)
        told = state.trials[: k + 1 - s.parallel]
        if any(trial.id not in state.results for trial in told):
            return []
        self._check(state, told)
        trial = self._propose(state, told, state.trials[len(told) :])
        return self._ending(state) if trial is None else [trial]

    def _ending(self, state: Refinement) -> list[Trial] | None:
        """The last measurements, once everything else is done; they end it, until there is a larger budget."""
        if state.unfinished():
            return []
        return None if state.trials[-1].purpose == "confirm" else self._confirm(state) or None

    # The initial design.

    @cached_property
    def design(self) -> list[Trial]:
        cheap, rng = self.settings.fidelities[0], np.random.default_rng([self.settings.seed, 0])
        fresh = range(min(2, self.settings.confirm))  # two tell how noisy the loss is
        trials = [self.trial(member, 1.0, repeat, "member") for repeat in fresh for member in self.members.values()]
        if cheap < 1:
            trials += [
                self.trial(member, cheap, repeat, "member") for repeat in fresh for member in self.members.values()
            ]
        trials += [self.trial(setup, cheap, purpose="design") for setup in self._spread(rng)]
        found: dict[str, Trial] = {}
        for trial in trials:
            found.setdefault(trial.id, trial)
        return list(found.values())

    def _spread(self, rng: np.random.Generator) -> list[Setup]:
        """Recipes that have helped elsewhere, then some from the middle of the space around the search's; of four
        trials one is an edit.
        """
        s, members = self.settings, list(self.members.values())
        n = max(0, s.design - len(self.earlier))
        n_edits = {"both": n // 4, "recipes": 0, "edits": n}[s.change]
        known = self.recipes.portfolio()[: n - n_edits]
        recipes = [
            *known,
            *(self.recipes.sample(n - n_edits - len(known), rng, width=0.5) if n > n_edits + len(known) else ()),
        ]
        found = [members[i % len(members)].with_settings(settings) for i, settings in enumerate(recipes)]
        groups = {member.member: self._by_kind(member, rng) for member in members if n_edits}
        for i in range(n_edits):
            kinds = groups[members[i % len(members)].member]
            if kinds:
                group = kinds[i // len(members) % len(kinds)]
                found.append(group[int(rng.integers(len(group)))])
        return found

    def _by_kind(self, member: Setup, rng: np.random.Generator) -> list[list[Setup]]:
        """The edits of a member that are allowed, by kind, in the order of a lot."""
        groups: dict[str, list[Setup]] = {}
        for edit in all_edits(member.genome, self.neighbourhood.genomes):
            edited = member.edited(edit)
            if self._feasible(edited) and (self.settings.aim == "front" or self._no_larger(edited)):
                groups.setdefault(edit.kind, []).append(edited)
        return [groups[kind] for kind in rng.permutation(sorted(groups))] if groups else []

    def _check(self, state: Refinement, told: Sequence[Trial]) -> None:
        """All trials diverging is no case for Bayesian optimization."""
        results = [state.results[trial.id] for trial in told]
        if len(results) >= len(self.design) and not any(r.status == "ok" for r in results):
            last = results[-1]
            raise RunFailed(
                f"All {len(results)} trials of the refinement failed; the last one ended as '{last.status}' ({last.reason}): "
                "try narrower ranges, such as --range learning_rate=LOW:HIGH, or other members"
            )

    # Proposals.

    def _propose(self, state: Refinement, told: Sequence[Trial], pending: Sequence[Trial]) -> Trial | None:
        s, step = self.settings, len(state.trials)
        rng = np.random.default_rng([s.seed, step, 2])
        seen = self.seen(state, told)
        forecasts = [(t.predicted, state.results[t.id].objectives) for t in told if t.predicted]
        pairs = [
            (predicted, self.loss.scaled(objectives[self.loss.name]))
            for predicted, objectives in forecasts
            if objectives
        ]
        scale = inflation(*zip(*pairs, strict=True)) if pairs else 1.0
        setups, member = self._pool(seen, told, state, pending, scale, rng)
        left = s.budget - s.confirm_cost - state.spent
        worth = (
            {"front": self.front(seen)}
            if s.aim == "front"
            else {"level": lambda posterior: self.levels(setups, seen, posterior)}
        )
        proposal = propose(
            self.pool(setups, member, state), self.observations(seen, pending), self.proposals, pretrained() if s.policy else None,
            budget=left, seed=s.seed, step=step, scale=scale, **worth,
        )  # fmt: skip
        if proposal.action is None:
            return None
        log = finite(
            proposal.log | {"scale": scale, "pool": len(setups), "acts": bool(proposal.log.get("acts", False))}
        )
        return self.trial(
            setups[proposal.candidate],
            proposal.fidelity,
            predicted=(proposal.mean, proposal.sd),
            source=proposal.source,
            log=log,
        )

    def _pool(self, seen, told, state, pending, scale: float, rng) -> tuple[list[Setup], np.ndarray]:
        order = list(self.members)
        full = [
            (order.index(t.member), self._gain_of(state, t))
            for t in told
            if t.share == 1.0 and t.purpose != "confirm" and t.member in order
        ]
        radii = REGION.radii(full, widened=int(scale > 1.0), margin=self.seed_sd(seen))
        running = [Seen(self.setup(t), t.share, None) for t in pending]
        best = {
            id: ranked([x for x in seen if x.setup.member == id])[:1]
            for id in dict.fromkeys([*order, *(x.setup.member for x in seen if x.setup.member)])
        }
        setups, member = [], []
        for i, id in enumerate(order):
            others = [row[1] for other, rows in best.items() if other != id for row in rows]
            found = self.neighbourhood.around(
                self.members[id], [*seen, *running], others, radii.get(i, REGION.start), rng
            )
            found = [
                setup
                for setup in found
                if self._feasible(setup) and (self.settings.aim == "front" or self._no_larger(setup))
            ]
            setups += found
            member += [i] * len(found)
        recipes = [rows[0][1].settings for rows in best.values() if rows and rows[0][1].settings != self.recipes.base]
        for id in self.rest if self.settings.aim == "front" and self.settings.change != "edits" else ():
            setups += [Setup(id, self.known[id], settings) for settings in recipes]
            member += [len(order)] * len(recipes)
        return setups, np.array(member)

    @cached_property
    def rest(self) -> list[str]:
        """The other members of the front, as the refinement found it: what was learned is tried on them as it is."""
        F = {id: [loss, *self.exact_of(self.known[id])] for id, loss in dict(reversed(self.evidence)).items()}
        rows = np.array(list(F.values()))
        dominated = ((rows[:, None] <= rows[None]).all(axis=2) & (rows[:, None] < rows[None]).any(axis=2)).any(axis=0)
        return [id for id, out in zip(F, dominated, strict=True) if not out and id not in self.members]

    def pool(self, setups: Sequence[Setup], member: np.ndarray, state: Refinement) -> Pool:
        """Closed is what was decided on already, and what the search knows at full length."""
        done = {(t.candidate, t.share) for t in [*state.trials, *(t for t, _ in self.earlier)]} | {
            (id, 1.0) for id, _ in state.evidence
        }
        ids = [setup.id(self.recipes.base) for setup in setups]
        return Pool(
            self.encoder.rows(setups),
            self.settings.fidelities,
            exact=np.array([self.exact_of(setup.genome) for setup in setups]).reshape(len(setups), len(self.exact)),
            kind=np.array([KINDS.index(setup.kind) for setup in setups]),
            member=member,
            distance=np.array([len(setup.edits) for setup in setups]),
            open=np.array([[(id, share) not in done for share in self.settings.fidelities] for id in ids]),
        )

    # What is known.

    def seen(self, state: Refinement, told: Sequence[Trial]) -> list[Seen]:
        """What the search measured and what the trials did, in that order. Members are measured afresh: what the search
        says of them is partly
        luck, for which they were chosen."""
        known = [
            Seen(Setup("", self.known[id], self.recipes.base), 1.0, loss)
            for id, loss in state.evidence
            if id not in self.members
        ]
        earlier = [Seen(self.setup(t), t.share, self._loss(result)) for t, result in self.earlier]
        return known + earlier + [Seen(self.setup(t), t.share, self._loss_of(state, t)) for t in told]

    def observations(self, seen: Sequence[Seen], pending: Sequence[Trial] = ()) -> Observations:
        """Of trials alone: the search's results are in the prior mean already, and so many losses that are just as
        expected would make every
        effect of a setting look like an outlier."""
        seen = [x for x in seen if x.setup.member]
        y = np.array([math.nan if x.loss is None else x.loss for x in seen])
        waiting = self.rows([(self.setup(t), t.share) for t in pending]) if pending else None
        return Observations(
            self.rows([(x.setup, x.share) for x in seen]), y, waiting, self.seed_sd(seen), prior=self.encoder.prior
        )

    def rows(self, tried: Sequence[tuple[Setup, float]]) -> np.ndarray:
        """Inputs as `Pool.rows` makes them."""
        rows = self.encoder.rows([setup for setup, _ in tried])
        if len(self.settings.fidelities) == 1:
            return rows
        return np.column_stack([rows, fidelity_coordinate(np.array([share for _, share in tried]))])

    def seed_sd(self, seen: Sequence[Seen]) -> float:
        groups: dict[tuple[str, float], list[float]] = {}
        for x in seen:
            if x.loss is not None:
                groups.setdefault((x.setup.key, x.share), []).append(x.loss)
        noise = noise_sd(groups)
        return noise.sd if noise else 0.0

    def front(self, seen: Sequence[Seen]) -> np.ndarray | None:
        """Losses and exact objectives [k, 1 + m], scaled, of all that is known at full length; None if the loss alone
        counts, or nothing is.
        """
        if not self.exact:
            return None
        F = np.array([[loss, *self.exact_of(setup.genome)] for loss, setup in ranked(seen)])
        if not len(F):
            return None
        dominated = ((F[:, None] <= F[None]).all(axis=2) & (F[:, None] < F[None]).any(axis=2)).any(axis=0)
        return F[~dominated]

    def levels(self, setups: Sequence[Setup], seen: Sequence[Seen], posterior: Averaged) -> np.ndarray:
        """Loss [n] that each candidate must beat: the lowest that is expected of its member or of what was made of it
        and trained in full.

        Expected, not measured: the lowest of many measurements is lucky, and nothing would promise to beat it.
        """
        best: dict[str, float] = {}
        for id in dict.fromkeys(setup.member for setup in setups):
            own = [x for x in seen if x.share == 1.0 and x.loss is not None and x.setup.member]
            mine = {
                x.setup.key: x.setup
                for x in own
                if (x.setup.member == id and self._no_larger(x.setup)) or x.setup.key == self._base(id).key
            }
            if mine:
                rows = self.rows([(setup, 1.0) for setup in mine.values()])
                best[id] = float((posterior.processes[0].marginals(rows)[0] + self.encoder.prior(rows)).min())
            else:
                best[id] = self.encoder.expected(self.known[id])
        return np.array([best[setup.member] for setup in setups])

    def _base(self, id: str) -> Setup:
        return self.members[id] if id in self.members else Setup(id, self.known[id], self.recipes.base)

    def _no_larger(self, setup: Setup) -> bool:
        """Than its member, in all objectives that are exact."""
        return all(
            a <= b + 1e-9
            for a, b in zip(self.exact_of(setup.genome), self.exact_of(self.known[setup.member]), strict=True)
        )

    def exact_of(self, genome: Genome) -> list[float]:
        cost = self.encoder.costs(genome)
        return [o.scaled(float(o.measure(cost))) for o in self.exact]

    def posterior(self, seen: Sequence[Seen]) -> Averaged:
        return fit(self.observations(seen), len(self.settings.fidelities) > 1, self.settings.seed)

    def _loss_of(self, state: Refinement, trial: Trial) -> float | None:
        return self._loss(state.results[trial.id])

    def _loss(self, result: TrialResult) -> float | None:
        return self.loss.scaled(result.objectives[self.loss.name]) if result.objectives else None

    def _gain_of(self, state: Refinement, trial: Trial) -> float:
        """Loss above what its genome was expected to have: a larger genome is no success by being larger."""
        loss = self._loss_of(state, trial)
        return math.inf if loss is None else loss - self.encoder.expected(self.setup(trial).genome)

    def _feasible(self, setup: Setup) -> bool:
        proposal = self.candidates.propose(setup.genome, "refined")
        return not proposal.infeasible

    # Trials.

    def trial(self, setup: Setup, share: float, repeat: int = 0, purpose: str = "proposal", **about) -> Trial:
        candidate = setup.id(self.recipes.base)
        costs = self.candidates.propose(setup.genome, "refined").costs
        return Trial(
            f"{candidate}-{share:g}-{repeat}", candidate, setup.member, to_json(setup.genome), dict(setup.settings), setup.kind, setup.edits,
            share, repeat, purpose, costs, **about,
        )  # fmt: skip

    def setup(self, trial: Trial) -> Setup:
        return self._setups.setdefault(
            trial.candidate, Setup(trial.member, from_json(trial.genome), trial.settings, trial.kind, trial.edits)
        )

    @cached_property
    def _setups(self) -> dict[str, Setup]:
        return {}

    # The end.

    def _confirm(self, state: Refinement) -> list[Trial]:
        """Fresh seeds for the best of each member and for the member itself; nothing that was measured so already."""
        seen = self.seen(state, state.trials)
        posterior = self.posterior(seen)
        chosen = self.best(state, seen, posterior)
        first = {setup.key: self.first_fresh(setup.id(self.recipes.base)) for setup in chosen}
        trials = [
            self.trial(setup, 1.0, first[setup.key] + r, "confirm")
            for setup in chosen
            for r in range(self.settings.confirm)
        ]
        trials += [
            self.trial(member, 1.0, r, "confirm")
            for member in self.members.values()
            for r in range(1, self.settings.confirm)
        ]
        done = {trial.id for trial in state.trials}
        trials = [trial for trial in {t.id: t for t in trials}.values() if trial.id not in done]
        if not trials:
            return []
        mean, sd = posterior.predict(self.rows([(self.setup(t), 1.0) for t in trials]))
        predicted = [(float(m), float(d)) for m, d in zip(mean, sd, strict=True)]
        return [Trial(**vars(t) | {"predicted": p}) for t, p in zip(trials, predicted, strict=True)]

    def first_fresh(self, candidate: str) -> int:
        """The first repeat of a candidate that has decided nothing: 1, or more where an earlier refinement measured it
        again.
        """
        return 1 + max((t.repeat for t, _ in self.earlier if t.candidate == candidate), default=0)

    def best(self, state: Refinement, seen: Sequence[Seen], posterior: Averaged) -> list[Setup]:
        """Of each member the tried candidate with the lowest expected loss among those no larger than it; then others
        on the front.
        """
        tried = list({x.setup.key: x.setup for x in seen if x.loss is not None and x.setup.member}.values())
        base = {member.key for member in self.members.values()}
        tried = [setup for setup in tried if setup.key not in base]
        if not tried:
            return []
        mean = self.expected(posterior, seen, tried)
        exact = np.array([self.exact_of(setup.genome) for setup in tried]).reshape(len(tried), len(self.exact))
        chosen: list[int] = []
        for id, member in self.members.items():
            small = (exact <= np.array(self.exact_of(member.genome)) + 1e-9).all(axis=1)
            mine = [i for i in np.flatnonzero(small) if tried[i].member == id]
            if mine:
                chosen.append(min(mine, key=lambda i: mean[i]))
        F = np.column_stack([mean, exact])
        front = Front([self.loss, *self.exact])
        front.F = np.vstack([front.F, self._known_front(seen)])
        front.ids = [""] * len(front.F)
        for _ in range(self.settings.extra if self.exact else 0):
            gains = [(_gain(front.F, F[i]), -i) for i in range(len(F)) if i not in chosen]
            if not gains or max(gains)[0] <= 0:
                break
            pick = -max(gains)[1]
            chosen.append(pick)
            front.F = np.vstack([front.F, F[pick]])
        return [tried[i] for i in chosen]

    def expected(self, posterior: Averaged, seen: Sequence[Seen], setups: Sequence[Setup]) -> np.ndarray:
        """Loss [n] at full length: the posterior's, moved towards what a candidate measured itself.

        What the process takes for noise is larger than the noise between seeds; the rest is an effect of this candidate
        that the process could not see, and stays when it is trained again.
        """
        mean, _ = posterior.predict(self.rows([(setup, 1.0) for setup in setups]))
        seeds = self.seed_sd(seen) ** 2
        unseen = max(float(posterior.weights @ [process.noise for process in posterior.processes]) - seeds, 0.0)
        for i, setup in enumerate(setups):
            losses = [x.loss for x in seen if x.setup.key == setup.key and x.share == 1.0 and x.loss is not None]
            if losses and unseen + seeds > 0:
                mean[i] += unseen / (unseen + seeds / len(losses)) * (np.mean(losses) - mean[i])
        return mean

    def _known_front(self, seen: Sequence[Seen]) -> np.ndarray:
        F = self.front([x for x in seen if x.setup.settings == self.recipes.base])
        return np.zeros((0, 1 + len(self.exact))) if F is None else F


def _gain(front: np.ndarray, point: np.ndarray) -> float:
    """How far a point is from being dominated by any of the front: the least, over members, of its best advantage, in
    units of the front.
    """
    if not len(front):
        return math.inf
    span = np.ptp(front, axis=0)
    return float(((front - point) / np.where(span > 0, span, 1.0)).max(axis=1).min())
