"""Running engines: compiled code, worker threads, sessions."""
