"""What `medfed check` finds in a hospital's folder before anything trains, and how it is told."""
