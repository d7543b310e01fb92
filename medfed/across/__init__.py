"""A study across machines: the coordinator's command, a hospital's, its site file, its policy, its consent."""
