"""One federation: the round, the Lightning callback, a site, the hub, and a simulation of all of
them in one process.
"""
