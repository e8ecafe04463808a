"""What pictures and pages are made of: colours, charts, tables."""
