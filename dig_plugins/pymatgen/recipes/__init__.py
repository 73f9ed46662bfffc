"""How the shipped models of crystals were made; run as scripts, resumable."""
