"""Drift after deployment: sketches of what a model sees and says, and their comparison.

`sketch` counts patients in public bins, which hospitals can add; `compare` tests a new sketch against a
reference; `image_values` are the numbers of an image that a sketch holds.
"""
