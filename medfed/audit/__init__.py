"""What crossed a hospital's wall, as a signed chain of lines, and as a page for people."""
