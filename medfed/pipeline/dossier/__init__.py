"""The export dossier: what an ethics board or a trusted research environment asks before weights may leave.

`write` collects it from a run's own records, `manifest` lists, signs and verifies its files.
"""
