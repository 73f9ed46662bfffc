"""How the shipped models of molecules were made."""
