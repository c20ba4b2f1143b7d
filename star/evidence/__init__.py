"""How far a front can be trusted: does its order hold at larger budgets, and are its members better than others?
And what can they do that a loss does not show?

    sampling.py     which candidates of a run are trained again
    climb.py        trains them at several times the budget, and at another width
    order.py        whether the order of the search holds there, and who gains or loses

    design.py       what a comparison of members and baselines will be, fixed before it runs
    matching.py     brings a genome to a given size
    comparison.py   trains what a protocol asks for
    verdict.py      what was shown, and what was not

    suite.py        trains members on tasks with known answers, and measures them beyond the training context

Imports search, run and what is below them; nothing but report and cli imports it.
"""
