"""What HostSample computes, without Slicer."""
