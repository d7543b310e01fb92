"""Statistics of a study's data that hospitals can add: what is counted, how small counts stay, and Table 1.

`scope.py` says which numbers a study asks for, `gather.py` counts them in one hospital, `suppress.py`
withholds the small ones, `blocks.py` writes them as one vector that hospitals add; `sums.py` and
`table_one.py` read the sum.
"""
