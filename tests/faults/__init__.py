"""The fault suite: each attack on a promise, how often it was tried, and what was found.

``make faults`` runs all of it and writes docs/reliability.md; tests/test_system/test_attacks.py runs a small part.
"""
