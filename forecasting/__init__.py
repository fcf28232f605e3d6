"""What a forecaster is: history in, quantiles out.

Both training and service stand on this package, and it imports neither.
"""
