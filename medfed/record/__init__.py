"""What a run leaves behind and shows while it runs: its folder, its progress, its status."""
