"""The mini world and the mini models trained on it: a whole diffusion family small enough for a laptop and for the tests."""
