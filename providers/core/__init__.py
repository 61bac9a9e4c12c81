"""What is the same for every provider. Reading order: contract, models, requests, errors, lease, aside, private, typed; then the packages gpu, catalog,
machine, renting and toolkit.
"""
