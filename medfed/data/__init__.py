"""A hospital's data: reading, listing, preparing. Nothing in here reaches the wire.

`read.py` turns files into volumes, `index.py` a folder into cases, `settings.py` says how they are prepared,
`datamodule.py` hands batches to Lightning. To read another folder layout, see `layouts/`; another
normalisation, `normalise/`.
"""
