"""The room that has to be trusted: keys, envelope, and each step of a secret's life. No HTTP in here."""
