"""Rows in: feeds that servers post and pages that are scraped."""
