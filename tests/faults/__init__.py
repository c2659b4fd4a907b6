"""The fault suite: each attack on a promise, with how often it was tried and what was found.

``make faults`` runs all of it and writes docs/reliability.md's table; tests/test_faults.py runs a small part.
"""
