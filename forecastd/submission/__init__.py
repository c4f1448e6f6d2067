"""One epoch: from the open submission window to the outcome."""
