"""Watch a deployed model at a hospital: `medfed watch-model`.

`observe` turns a folder into each patient's values, `state` keeps the reference and the looks, `watch` does
one look, and `page` shows all of them.
"""
