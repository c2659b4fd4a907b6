"""The JSON API: a face over the vault."""
