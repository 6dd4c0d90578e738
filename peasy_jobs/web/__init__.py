"""What people see: the dashboard, the admin lists, the progress widget and the JSON document."""
