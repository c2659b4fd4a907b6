"""Tests on running containers."""
