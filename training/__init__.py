"""From a panel of history to a fitted, calibrated and honestly tested forecaster."""
