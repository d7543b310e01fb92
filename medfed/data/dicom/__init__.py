"""DICOM files to volumes: read, separated into stacks, put in order, decoded, refused where they don't fit."""
