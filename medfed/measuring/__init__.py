"""Models over a hospital's cases, as rows, masks and pictures that stay in that hospital."""
