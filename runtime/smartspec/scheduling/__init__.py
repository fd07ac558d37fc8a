"""Scheduling: which tokens run in the next step. Integers only, no torch."""
