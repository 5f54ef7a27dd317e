"""The training objective: matching, the table of loss terms, their weighted sum."""
