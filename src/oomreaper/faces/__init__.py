"""What people see. Nothing in the house imports this room."""
