"""The reference bot: strategies, command line and report, assembled from the public face only."""
