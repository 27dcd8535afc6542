"""The study: whole steps, the paper's figures, statistics over sessions, and what the drivers of it share."""
