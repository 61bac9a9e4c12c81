"""Credentials as Prefect blocks, one file per provider, and what belongs to no provider. Importing this package imports nothing.

In reading order: collection (all of them, for Prefect to find), pages (their links), realm, server (whose realm it is), registry; the fields
that many have: api, network, options, budget; then one file a provider.
"""
