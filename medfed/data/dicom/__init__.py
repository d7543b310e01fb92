"""DICOM files to volumes: headers parsed, series split into stacks, stacks ordered and decoded."""
