"""What crosses a hospital's wall: weights, updates, their encoding, messages, signatures, and the signed
log of it all.
"""
