"""How far a front can be trusted: does its order hold at larger budgets?

    sampling.py     which candidates of a run are trained again
    climb.py        trains them at several times the budget, and at another width
    order.py        whether the order of the search holds there, and who gains or loses

Imports search, run and what is below them; nothing but report and cli imports it.
"""
