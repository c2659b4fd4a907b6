"""Tests of whole services: real processes, a real database, a file for each promise."""
