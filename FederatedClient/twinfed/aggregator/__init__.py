"""The federation's server: rounds, strategies, checks, state and the web page. No torch; one process, one folder."""
