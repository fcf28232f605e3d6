"""What each command does, given its arguments; `cli.py` imports the part it needs when a command runs."""
