"""Side by side with the peers, each result with the command that made it."""
