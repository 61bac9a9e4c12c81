"""Tests of the provider `kubernetes`, a file for each of its modules."""
