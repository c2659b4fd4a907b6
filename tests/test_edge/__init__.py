"""Tests of quart_ots/edge."""
