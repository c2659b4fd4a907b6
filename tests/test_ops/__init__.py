"""Tests of quart_ots/ops."""
