"""How the shipped models were made: one script a model."""
