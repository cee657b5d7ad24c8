"""Fuzzing of all that reads what others wrote: see ``harness`` for how, ``targets`` for what.

``python -m tests.fuzz --help`` runs it by hand, ``make fuzz`` five million times each.
"""
