"""A study file as typed records, read strictly."""
