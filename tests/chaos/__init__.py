"""Chaos: many runs at the same time on a real Prefect server with two workers and fake clouds in a process of their own, while everything dies.

`make chaos SEEDS=0-299`, or `python -m tests.chaos --seeds 0-299 --database both`. Reading order: schedule (what a seed does), clouds (who rents),
cloud_server and remote (the clouds' process, and the way to it), zygote and launch (flow processes that start in milliseconds, and where they die), worker,
batch (seeds beside each other on one stack), judge (what must hold), pages.
"""
