"""Tests of quart_ots/api."""
