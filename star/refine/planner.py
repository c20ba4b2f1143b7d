"""What to train next in a refinement: a pure function of the record, so that a refinement that was killed resumes with
the same trials.

Trial number k is decided from the results of trials 0 ... k - parallel; later ones count as pending even where they are
done. Then neither the number of workers nor the order in which they finish changes anything.

    design      each member as the search trained it, with fresh seeds; then recipes that helped elsewhere, spread-out
                recipes
                and edits, dealt out among the members; fewer where earlier refinements of the run have results
    proposal    by `star.refine.propose`, over candidates around all members, until the budget or the time is used up
    confirm     the best, and the members, with fresh seeds, because the best of many noisy results is partly luck
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from star.assess import Objective
from star.assess.noise import noise_sd
from star.config import RunConfig
from star.errors import RunFailed
from star.genome import Genome, Space, from_json, to_json
from star.refine.candidates import Encoder, Seen, Setup, all_edits, around, ranked
from star.refine.policy import PolicySettings
from star.refine.propose import Pool, fidelity_coordinate, propose
from star.refine.propose import Settings as ProposalSettings
from star.refine.settings import RefineSettings
from star.search.jobs import Candidates, finite
from star.store import Refinement, Trial, TrialResult
from star.surrogate.calibration import inflation
from star.surrogate.posterior import Averaged, Observations, fit
from star.training.recipe_space import RecipeSpace, recipe_space


class Planner:
    """candidates: the run's cheap objectives; known: genomes of the search by id, members included; evidence: (id,
    scaled
    loss) of the search; earlier: trials of other refinements of the run."""

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        candidates: Candidates,
        settings: RefineSettings,
        known: Mapping[str, Genome],
        evidence: Sequence[tuple[str, float]],
        earlier: Sequence[tuple[Trial, TrialResult]] = (),
    ):
        self.settings, self.space, self.candidates, self.known = settings, space, candidates, known
        self.evidence, self.earlier = list(evidence), list(earlier)
        self.recipes: RecipeSpace = recipe_space(config.training, settings.ranges)
        pairs = [(known[id], loss) for id, loss in evidence]
        self.encoder = Encoder(self.recipes, candidates.corpus["vocab_size"], config.objectives.cache_tokens, pairs)
        self.loss: Objective = next(o for o in candidates.objectives if not o.cheap)
        self.exact = [o for o in candidates.objectives if o.cheap]
        self.members = {id: Setup(id, known[id], self.recipes.base) for id in settings.members}
        self._setups: dict[str, Setup] = {}

    def next(self, state: Refinement) -> list[Trial] | None:
        """The next trials; [] if results must come first; None when all is done. Raises RunFailed if every trial
        failed.
        """
        k, s = len(state.trials), self.settings
        if k < len(self.design):
            return [self.design[k]]
        if state.closed or state.spent + s.fidelities[0] + s.confirm_cost > s.budget * (1 + 1e-9):
            return self._ending(state)
        observed = state.trials[: k + 1 - s.parallel]
        if any(trial.id not in state.results for trial in observed):
            return []
        results = [state.results[trial.id] for trial in observed]
        if len(results) >= len(self.design) and not any(r.status == "ok" for r in results):
            raise RunFailed(
                f"All {len(results)} trials of the refinement failed; the last one ended as '{results[-1].status}' "
                f"({results[-1].reason}): try narrower ranges, such as --range learning_rate=LOW:HIGH, or other members"
            )
        trial = self._propose(state, observed, state.trials[len(observed) :])
        return self._ending(state) if trial is None else [trial]

    def _ending(self, state: Refinement) -> list[Trial] | None:
        """The last measurements, once everything else is done; they end the refinement until the budget is raised."""
        if state.unfinished():
            return []
        return None if state.trials[-1].purpose == "confirm" else self._confirm(state) or None

    # The initial design.

    @cached_property
    def design(self) -> list[Trial]:
        """The first trials: members with two fresh seeds, which tell how noisy the loss is; then others."""
        cheap, rng = self.settings.fidelities[0], np.random.default_rng([self.settings.seed, 0])
        fresh = range(min(2, self.settings.confirm))
        shares = (1.0, cheap) if cheap < 1 else (1.0,)
        trials = [self.trial(m, share, r, "member") for share in shares for r in fresh for m in self.members.values()]
        trials += [self.trial(setup, cheap, purpose="design") for setup in self._spread(rng)]
        return list({trial.id: trial for trial in trials}.values())

    def _spread(self, rng: np.random.Generator) -> list[Setup]:
        """Recipes that helped elsewhere, then some from the middle of the space; of four trials one is an edit."""
        s, members = self.settings, list(self.members.values())
        n = max(0, s.design - len(self.earlier))
        n_edits = {"both": n // 4, "recipes": 0, "edits": n}[s.change]
        recipes = self.recipes.portfolio()[: n - n_edits]
        if n > n_edits + len(recipes):
            recipes += self.recipes.sample(n - n_edits - len(recipes), rng, width=0.5)
        found = [members[i % len(members)].with_settings(settings) for i, settings in enumerate(recipes)]
        groups = {member.member: self._by_kind(member, rng) for member in members if n_edits}
        for i in range(n_edits):
            kinds = groups[members[i % len(members)].member]
            if kinds:
                group = kinds[i // len(members) % len(kinds)]
                found.append(group[int(rng.integers(len(group)))])
        return found

    def _by_kind(self, member: Setup, rng: np.random.Generator) -> list[list[Setup]]:
        """The allowed edits of a member by kind, in random order."""
        groups: dict[str, list[Setup]] = {}
        for edit in all_edits(member.genome, self.space):
            edited = member.edited(edit)
            if self._allowed(edited):
                groups.setdefault(edit.kind, []).append(edited)
        return [groups[kind] for kind in rng.permutation(sorted(groups))] if groups else []

    # Proposals.

    def _propose(self, state: Refinement, observed: Sequence[Trial], pending: Sequence[Trial]) -> Trial | None:
        s, step = self.settings, len(state.trials)
        seen = self.seen(state, observed)
        measured = [(t.predicted, self._loss(state.results[t.id])) for t in observed if t.predicted]
        pairs = [(predicted, loss) for predicted, loss in measured if loss is not None]
        scale = inflation(*zip(*pairs, strict=True)) if pairs else 1.0
        running = [Seen(self.setup(t), t.share, None) for t in pending]
        setups, member = self._around(seen, running, np.random.default_rng([s.seed, step, 2]))
        front, level = (self.front(seen), None) if s.aim == "front" else (None, lambda p: self.levels(setups, seen, p))
        proposal = propose(
            self.pool(setups, member, state),
            self.observations(seen, pending),
            ProposalSettings(PolicySettings() if s.policy else None),
            budget=s.budget - s.confirm_cost - state.spent,
            seed=s.seed,
            step=step,
            front=front,
            scale=scale,
            level=level,
        )
        if proposal.candidate is None or proposal.fidelity is None:
            return None
        log = finite(proposal.log | {"scale": scale, "pool": len(setups), "acts": bool(proposal.log.get("acts"))})
        about = {"predicted": (proposal.mean, proposal.sd), "source": proposal.source, "log": log}
        return self.trial(setups[proposal.candidate], proposal.fidelity, **about)

    def _around(
        self, seen: Sequence[Seen], running: Sequence[Seen], rng: np.random.Generator
    ) -> tuple[list[Setup], np.ndarray]:
        """Candidates around every member, and the number of the member of each [n].

        Where the aim is the front, the best recipes are also tried on its other members, as one more group.
        """
        ids = dict.fromkeys([*self.members, *(x.setup.member for x in seen if x.setup.member)])
        best = {id: ranked([x for x in seen if x.setup.member == id])[:1] for id in ids}
        setups: list[Setup] = []
        member: list[int] = []
        for i, (id, own) in enumerate(self.members.items()):
            others = [row[1] for other, rows in best.items() if other != id for row in rows]
            found = around(own, [*seen, *running], others, self.recipes, self.space, self.settings.change, rng)
            found = [setup for setup in found if self._allowed(setup)]
            setups += found
            member += [i] * len(found)
        if self.settings.aim == "front" and self.settings.change != "edits":
            base = self.recipes.base
            recipes = [rows[0][1].settings for rows in best.values() if rows and rows[0][1].settings != base]
            rest = [Setup(id, self.known[id], settings) for id in self.rest for settings in recipes]
            setups += rest
            member += [len(self.members)] * len(rest)
        return setups, np.array(member)

    @cached_property
    def rest(self) -> list[str]:
        """The other members of the front at the start of the refinement."""
        first = dict(reversed(self.evidence))
        rows = np.array([[loss, *self.exact_of(self.known[id])] for id, loss in first.items()])
        return [id for id, keep in zip(first, _non_dominated(rows), strict=True) if keep and id not in self.members]

    def pool(self, setups: Sequence[Setup], member: np.ndarray, state: Refinement) -> Pool:
        """The candidates as numbers; closed is what was decided already, and what the search knows at full length."""
        done = {(t.candidate, t.share) for t in [*state.trials, *(t for t, _ in self.earlier)]}
        done |= {(id, 1.0) for id, _ in state.evidence}
        ids, fidelities = [setup.id(self.recipes.base) for setup in setups], self.settings.fidelities
        return Pool(
            self.encoder.rows(setups),
            fidelities,
            exact=np.array([self.exact_of(setup.genome) for setup in setups]).reshape(len(setups), len(self.exact)),
            member=member,
            open=np.array([[(id, share) not in done for share in fidelities] for id in ids]),
        )

    # What is known.

    def seen(self, state: Refinement, observed: Sequence[Trial]) -> list[Seen]:
        """Measurements of the search, of earlier refinements and of trials, in that order.

        The search's measurement of a member is left out: members were chosen for it, so it is partly luck.
        """
        known = [(Setup("", self.known[id], self.recipes.base), loss) for id, loss in state.evidence]
        trials = [*self.earlier, *((t, state.results[t.id]) for t in observed)]
        found = [Seen(setup, 1.0, loss) for setup, loss in known if setup.genome.id not in self.members]
        return found + [Seen(self.setup(t), t.share, self._loss(result)) for t, result in trials]

    def observations(self, seen: Sequence[Seen], pending: Sequence[Trial] = ()) -> Observations:
        """Of trials alone: the search's results are in the prior mean, and many losses that equal their prior mean
        would
        make every effect of a setting look like an outlier."""
        seen = [x for x in seen if x.setup.member]
        y = np.array([math.nan if x.loss is None else x.loss for x in seen])
        rows = self.rows([(x.setup, x.share) for x in seen])
        waiting = self.rows([(self.setup(t), t.share) for t in pending]) if pending else rows[:0]
        return Observations(rows, y, waiting, self.seed_sd(seen), prior=self.encoder.prior)

    def rows(self, tried: Sequence[tuple[Setup, float]]) -> np.ndarray:
        """Inputs as `Pool.rows` makes them."""
        rows = self.encoder.rows([setup for setup, _ in tried])
        if len(self.settings.fidelities) == 1:
            return rows
        return np.column_stack([rows, fidelity_coordinate(np.array([share for _, share in tried]))])

    def seed_sd(self, seen: Sequence[Seen]) -> float:
        """Standard deviation of the loss between seeds in nats, 0 if nothing was repeated."""
        groups: dict[tuple[str, float], list[float]] = {}
        for x in seen:
            if x.loss is not None:
                groups.setdefault((x.setup.key, x.share), []).append(x.loss)
        noise = noise_sd(list(groups.values()))
        return noise.sd if noise else 0.0

    def front(self, seen: Sequence[Seen]) -> np.ndarray | None:
        """Scaled losses and exact objectives [k, 1 + m] of the front at full length; None if the loss alone counts."""
        F = np.array([[loss, *self.exact_of(setup.genome)] for loss, setup in ranked(seen)])
        return F[_non_dominated(F)] if self.exact and len(F) else None

    def levels(self, setups: Sequence[Setup], seen: Sequence[Seen], posterior: Averaged) -> np.ndarray:
        """Loss [n] that each candidate must beat: the lowest expected loss among its member and what was made of it.

        Expected, not measured: the lowest of many measurements is lucky, and no candidate would be expected to beat it.
        """
        best: dict[str, float] = {}
        full = [x.setup for x in seen if x.share == 1.0 and x.loss is not None and x.setup.member]
        for id in dict.fromkeys(setup.member for setup in setups):
            base = self.members[id] if id in self.members else Setup(id, self.known[id], self.recipes.base)
            mine = {x.key: x for x in full if (x.member == id and self._no_larger(x)) or x.key == base.key}
            best[id] = self.encoder.expected(self.known[id])
            if mine:
                rows = self.rows([(setup, 1.0) for setup in mine.values()])
                best[id] = float((posterior.processes[0].marginals(rows)[0] + self.encoder.prior(rows)).min())
        return np.array([best[setup.member] for setup in setups])

    def exact_of(self, genome: Genome) -> list[float]:
        """Scaled exact objectives [m]."""
        cost = self.encoder.costs(genome)
        return [o.scaled(float(o.measure(cost))) for o in self.exact]

    def posterior(self, seen: Sequence[Seen]) -> Averaged:
        """The averaged Gaussian process of these observations."""
        return fit(self.observations(seen), len(self.settings.fidelities) > 1, self.settings.seed)

    def _loss(self, result: TrialResult) -> float | None:
        return self.loss.scaled(result.objectives[self.loss.name]) if result.objectives else None

    def _no_larger(self, setup: Setup) -> bool:
        """Than its member, in all exact objectives."""
        own, member = self.exact_of(setup.genome), self.exact_of(self.known[setup.member])
        return all(a <= b + 1e-9 for a, b in zip(own, member, strict=True))

    def _allowed(self, setup: Setup) -> bool:
        """Within the bounds of the run and, unless the aim is the front, no larger than its member."""
        feasible = not self.candidates.propose(setup.genome, "refined").infeasible
        return feasible and (self.settings.aim == "front" or self._no_larger(setup))

    # Trials.

    def trial(self, setup: Setup, share: float, repeat: int = 0, purpose: str = "proposal", **about) -> Trial:
        """The trial of a candidate at a share of the budget."""
        candidate = setup.id(self.recipes.base)
        return Trial(
            id=f"{candidate}-{share:g}-{repeat}",
            candidate=candidate,
            member=setup.member,
            genome=to_json(setup.genome),
            settings=dict(setup.settings),
            kind=setup.kind,
            edits=setup.edits,
            share=share,
            repeat=repeat,
            purpose=purpose,
            costs=self.candidates.propose(setup.genome, "refined").costs,
            **about,
        )

    def setup(self, trial: Trial) -> Setup:
        """The candidate of a trial."""
        if trial.candidate not in self._setups:
            genome = from_json(trial.genome)
            self._setups[trial.candidate] = Setup(trial.member, genome, trial.settings, trial.kind, trial.edits)
        return self._setups[trial.candidate]

    # The end.

    def _confirm(self, state: Refinement) -> list[Trial]:
        """Fresh seeds for the best of each member and for the members; without trials that were made already."""
        seen, repeats = self.seen(state, state.trials), self.settings.confirm
        posterior = self.posterior(seen)
        trials = []
        for setup in self.best(seen, posterior):
            first = self.first_fresh(setup.id(self.recipes.base))
            trials += [self.trial(setup, 1.0, first + r, "confirm") for r in range(repeats)]
        trials += [self.trial(m, 1.0, r, "confirm") for m in self.members.values() for r in range(1, repeats)]
        done = {trial.id for trial in state.trials}
        trials = [trial for trial in {t.id: t for t in trials}.values() if trial.id not in done]
        if not trials:
            return []
        mean, sd = posterior.predict(self.rows([(self.setup(t), 1.0) for t in trials]))
        predicted = zip(mean.tolist(), sd.tolist(), strict=True)
        return [Trial(**vars(t) | {"predicted": p}) for t, p in zip(trials, predicted, strict=True)]

    def first_fresh(self, candidate: str) -> int:
        """The first repeat of a candidate that decided nothing: above 1 if an earlier refinement repeated it."""
        return 1 + max((t.repeat for t, _ in self.earlier if t.candidate == candidate), default=0)

    def best(self, seen: Sequence[Seen], posterior: Averaged) -> list[Setup]:
        """Of each member the tried candidate with the lowest expected loss that is no larger; then others for the
        front.
        """
        base = {member.key for member in self.members.values()}
        tried = {x.setup.key: x.setup for x in seen if x.loss is not None and x.setup.member}
        setups = [setup for key, setup in tried.items() if key not in base]
        if not setups:
            return []
        mean = self.expected(posterior, seen, setups)
        exact = np.array([self.exact_of(setup.genome) for setup in setups]).reshape(len(setups), len(self.exact))
        chosen: list[int] = []
        for id, member in self.members.items():
            small = (exact <= np.array(self.exact_of(member.genome)) + 1e-9).all(axis=1)
            mine = [i for i in np.flatnonzero(small).tolist() if setups[i].member == id]
            if mine:
                chosen.append(min(mine, key=lambda i: mean[i]))
        F = np.column_stack([mean, exact])
        known = self.front([x for x in seen if x.setup.settings == self.recipes.base])
        front = np.zeros((0, F.shape[1])) if known is None else known
        for _ in range(self.settings.extra if self.exact else 0):
            gains = {i: _advantage(front, F[i]) for i in range(len(F)) if i not in chosen}
            pick = max(gains, key=gains.__getitem__, default=None)
            if pick is None or gains[pick] <= 0:
                break
            chosen.append(pick)
            front = np.vstack([front, F[pick]])
        return [setups[i] for i in chosen]

    def expected(self, posterior: Averaged, seen: Sequence[Seen], setups: Sequence[Setup]) -> np.ndarray:
        """Loss [n] at full length: the posterior's, shrunk towards what a candidate itself measured.

        The noise of the process is larger than the noise between seeds. The rest is an effect of the candidate that the
        process cannot see and that stays when it is trained again.
        """
        mean, _ = posterior.predict(self.rows([(setup, 1.0) for setup in setups]))
        seeds = self.seed_sd(seen) ** 2
        unseen = max(float(posterior.weights @ [process.noise for process in posterior.processes]) - seeds, 0.0)
        for i, setup in enumerate(setups):
            losses = [x.loss for x in seen if x.setup.key == setup.key and x.share == 1.0 and x.loss is not None]
            if losses and unseen + seeds > 0:
                mean[i] += unseen / (unseen + seeds / len(losses)) * (np.mean(losses) - mean[i])
        return mean


def _non_dominated(F: np.ndarray) -> np.ndarray:
    """Which rows of F [n, m] no other row dominates [n]."""
    if not len(F):
        return np.zeros(0, bool)
    dominates = np.all(F[:, None] <= F[None], axis=2) & np.any(F[:, None] < F[None], axis=2)
    return ~np.any(dominates, axis=0)


def _advantage(front: np.ndarray, point: np.ndarray) -> float:
    """Distance from being dominated: the least, over the front, of the best advantage, in units of the front."""
    if not len(front):
        return math.inf
    span = np.ptp(front, axis=0)
    return float(((front - point) / np.where(span > 0, span, 1.0)).max(axis=1).min())
