"""What each command does, callable as a library: train, evaluate, predict, export, check, draft."""
