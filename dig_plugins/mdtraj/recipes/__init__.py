"""How the shipped models of proteins were made."""
