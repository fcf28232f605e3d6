"""A forecaster over HTTP.

Imports `forecasting` and never `training` or `pipelines`.
"""
