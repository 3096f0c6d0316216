"""Studies: a paper's runs from one file, their ledger, and finished runs side by side."""
