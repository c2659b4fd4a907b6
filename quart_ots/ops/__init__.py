"""The process: serving, stopping, logging, metrics, the database connection."""
