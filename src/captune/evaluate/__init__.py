"""Evaluate: score the samples, then compare the arms and say how sure the comparison is."""
