"""Attacks that measure what an update reveals about the training cases.

    inversion.py   from an update back to the images or rows that made it
    membership.py  whether a patient was among the training cases

To add an attack, add a file with a function from what the hub sees to a number between 0 (nothing) and 1
(everything).
"""
