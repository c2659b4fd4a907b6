"""Measurements. None of them fails by its figures: machines differ, and are shared."""
