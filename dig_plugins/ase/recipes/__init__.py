"""How the shipped adsorption models were made; run as scripts, resumable."""
