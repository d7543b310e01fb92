"""A hospital's data: reading, listing and preparing it. No module in here reaches the wire.

`read.py` turns files into volumes, `index.py` a folder into cases; `settings.py` holds the settings of their
preparation, `datamodule.py` gives batches to Lightning. To support another folder layout, see `layouts/`;
another normalisation, `normalise/`.
"""
