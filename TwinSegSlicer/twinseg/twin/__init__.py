"""The patient twin: one patient's record over time, and what it says about the past and the days to come."""
