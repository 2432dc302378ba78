"""Reports: groups of runs compared, as a page that opens anywhere, with intervals over seeds."""
