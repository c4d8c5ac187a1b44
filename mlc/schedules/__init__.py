"""Which schedules operators get where TVM's own choice is poor."""
