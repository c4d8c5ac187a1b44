"""Use an artifact: run, time and verify it. Needs TVM's small runtime library only."""
