"""Tests of quart_ots. Each says in a sentence what it promises."""
