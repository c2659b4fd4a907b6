"""Around every request of any API: its id, its headers, its log line, its budget."""
