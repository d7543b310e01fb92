"""A run's folder on disk: where each file lies, its typed records, progress and status."""
