"""Credentials as Prefect blocks, one file per provider."""
