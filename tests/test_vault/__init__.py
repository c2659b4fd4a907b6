"""Tests of quart_ots/vault."""
