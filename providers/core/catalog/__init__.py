"""The collected prices. Reading order: kinds, filters, writing, snapshot, store, query, explain; then how they are made new: facts, places,
collect, published, findings, expected, levels, notes, rules, changes, refresh, history.
"""
