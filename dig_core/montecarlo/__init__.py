"""How sampling stays exact: weighted proposals, Metropolis and multiple-try chains, statistics."""
